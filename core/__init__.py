"""What the commands share, one noun a file. Nothing here runs on import or prints by itself."""


class UserError(Exception):
    """A mistake outside our code: one sentence with what, the value, what is accepted, the remedy.

    Whoever raises it writes for the person at the terminal; configurator.py prints it and exits
    with status 2. Our own bugs are asserts and keep their traceback.
    """

"""How a dialogue is tokens: those of each turn, <sep> after each turn, <eos> after the last.

hi, hello, how are you  ->  hi<sep>hello<sep>how are you<eos>

With roles each turn begins with the token of its role:

{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
                        ->  <user>hi<sep><assistant>hello<eos>

DialoGPT, which has no such tokens, ends each turn with GPT-2's <|endoftext|>.
"""

from core import UserError
from core.tokenizer import END, Tokenizer

SEP, EOS = "<sep>", "<eos>"
ROLES = {"system": "<system>", "user": "<user>", "assistant": "<assistant>"}


class TurnTokens:
    """The tokens around the turns of a conversation, as the model's tokenizer has them.

    user, assistant: before such a turn, empty without roles. end: after a turn. stop: any of these
    ends a reply. UserError if the model was not trained on dialogues.
    """

    def __init__(self, tokenizer: Tokenizer, path: str):
        special = tokenizer.special
        if SEP not in special and END not in special:
            raise UserError(f"{path} was not trained on dialogues: its vocabulary has no {SEP}.")
        self.end = special.get(SEP, special.get(END))
        self.stop = tuple(special[name] for name in (SEP, EOS, END) if name in special)
        self.user, self.assistant = (
            [special[ROLES[role]]] if ROLES[role] in special else []
            for role in ("user", "assistant")
        )


def turns_of(row: object, where: str) -> list[tuple[str, str]]:
    """(role, text) of each turn of a row of .jsonl, without empty ones; UserError if it has none.

    row: {"messages": [{"role": ..., "content": ...}, ...]} or {"prompt": ..., "response": ...}.
    """
    turns = []
    if isinstance(row, dict) and isinstance(row.get("messages"), list):
        turns = [m if isinstance(m, dict) else {} for m in row["messages"]]
        turns = [(message.get("role"), message.get("content")) for message in turns]
    elif isinstance(row, dict) and {"prompt", "response"} <= row.keys():
        turns = [("user", row["prompt"]), ("assistant", row["response"])]
    if not turns:
        raise UserError(f"{where} has neither messages nor a prompt and a response.")
    for role, text in turns:
        if role not in ROLES or not isinstance(text, str):
            raise UserError(
                f"{where} has a message of role {role!r} with {type(text).__name__} as content: "
                f"the roles are {', '.join(ROLES)}, the content is text."
            )
    return [(role, text.strip()) for role, text in turns if text.strip()]

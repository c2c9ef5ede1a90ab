"""How a dialogue is tokens: those of each turn, <sep> after each turn, <eos> after the last.

hi, hello, how are you  ->  hi<sep>hello<sep>how are you<eos>
"""

SEP, EOS = "<sep>", "<eos>"

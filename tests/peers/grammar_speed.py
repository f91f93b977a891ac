"""Compares the cost of grammars with other libraries on the same vocabulary and texts.

Usage: python tests/peers/grammar_speed.py PROGRAM FOLDER END_TOKEN
  PROGRAM: build/release/tests/grammar_speed; FOLDER: a tokenizer's with qwen.tiktoken.
Needs tiktoken, and llguidance or xgrammar where they are to be measured (those that are not installed are left out).
Prints one line a library and grammar: microseconds a token for finding the mask and going on, the first time and later.
"""

import base64
import json
import pathlib
import statistics
import subprocess
import sys
import time

REGEX = (r"(yes|no), [^\n]{10,200}\.", "yes, a patchy opacity in the right lower zone, most likely pneumonia.")
VALUE = json.dumps({"finding": "opacity", "side": "right", "boxes": [[51, 190, 140, 281], [243, 252, 270, 280]],
                    "report": "A patchy opacity in the right lower zone, most likely pneumonia.", "certain": True})
SCHEMA = {"type": "object",
          "properties": {"finding": {"type": "string", "maxLength": 40}, "side": {"enum": ["left", "right", "both"]},
                         "boxes": {"type": "array", "items": {"type": "array", "minItems": 4, "maxItems": 4,
                                                              "items": {"type": "integer", "minimum": 0, "maximum": 336}}},
                         "report": {"type": "string"}, "certain": {"type": "boolean"}},
          "required": ["finding", "side", "boxes", "report", "certain"], "additionalProperties": False}


def vocabulary(folder):
    ranks = [base64.b64decode(line.split()[0]) for line in (folder / "qwen.tiktoken").read_bytes().splitlines() if line]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + [f"<|extra_{i}|>" for i in range(205)]
    return ranks, specials


def encoder(ranks, specials):
    import tiktoken
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
               r"|\s+(?!\S)|\s+")
    return tiktoken.Encoding("qwen", pat_str=pattern, mergeable_ranks={token: i for i, token in enumerate(ranks)},
                             special_tokens={token: len(ranks) + i for i, token in enumerate(specials)})


def follow(make, ids):
    start = time.perf_counter()
    step = make()
    compiled = time.perf_counter() - start
    times = []
    for token in ids:
        start = time.perf_counter()
        step(token)
        times.append(1e6 * (time.perf_counter() - start))
    return 1e3 * compiled, statistics.mean(times), max(times)


def llguidance_cases(ranks, specials, encoding):
    import llguidance
    import llguidance.numpy
    tokens = ranks + [b"\xff" + token.encode() for token in specials]

    class Wrapper:
        eos_token_id = len(ranks) + 2
        bos_token_id = None
        special_token_ids = list(range(len(ranks), len(tokens)))

        def __init__(self):
            self.tokens = tokens

        def __call__(self, text):
            return encoding.encode(text.decode() if isinstance(text, bytes) else text, allowed_special="all")

    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Wrapper()))

    def case(grammar):
        def make():
            matcher = llguidance.LLMatcher(tokenizer, grammar)
            mask = llguidance.numpy.allocate_token_bitmask(1, tokenizer.vocab_size)

            def step(token):
                llguidance.numpy.fill_next_token_bitmask(matcher, mask)
                if not matcher.consume_token(token):
                    sys.exit("llguidance refuses the sample text")
            return step
        return make

    yield "regex", case(llguidance.LLMatcher.grammar_from_regex(REGEX[0])), REGEX[1]
    yield "json_schema", case(llguidance.LLMatcher.grammar_from_json_schema(SCHEMA)), VALUE


def xgrammar_cases(ranks, specials, encoding):
    import xgrammar
    tokens = ranks + [token.encode() for token in specials]
    info = xgrammar.TokenizerInfo(tokens, xgrammar.VocabType.RAW, stop_token_ids=[len(ranks) + 2])
    compiler = xgrammar.GrammarCompiler(info, cache_enabled=False)

    def case(compile_one):
        def make():
            matcher = xgrammar.GrammarMatcher(compile_one())
            mask = xgrammar.allocate_token_bitmask(1, len(tokens))

            def step(token):
                matcher.fill_next_token_bitmask(mask)
                if not matcher.accept_token(token):
                    sys.exit("xgrammar refuses the sample text")
            return step
        return make

    yield "regex", case(lambda: compiler.compile_regex(REGEX[0])), REGEX[1]
    yield "json_schema", case(lambda: compiler.compile_json_schema(json.dumps(SCHEMA))), VALUE


def main():
    program, folder, end = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
    own = json.loads(subprocess.run([program, str(folder), end], check=True, capture_output=True, text=True).stdout)
    print(f"thinkvg: vocabulary {own['vocabulary_ms']:.0f} ms")
    for name, numbers in own.items():
        if isinstance(numbers, dict):
            print(f"thinkvg {name}: compile {numbers['compile_ms']:.2f} ms, first {numbers['first_mean_us']:.1f} us a token "
                  f"(most {numbers['first_most_us']:.0f}), again {numbers['again_mean_us']:.2f}, putting the mask on the "
                  f"logits {numbers['apply_mask_us']:.1f}")
    ranks, specials = vocabulary(folder)
    encoding = encoder(ranks, specials)
    for library, cases in (("llguidance", llguidance_cases), ("xgrammar", xgrammar_cases)):
        try:
            for name, make, text in cases(ranks, specials, encoding):
                ids = encoding.encode(text)
                compiled, first, most = follow(make, ids)
                again = min(follow(make, ids)[1] for _ in range(5))
                print(f"{library} {name}: compile {compiled:.2f} ms, first {first:.1f} us a token (most {most:.0f}), again "
                      f"{again:.2f}")
        except ImportError as error:
            print(f"{library}: {error}")


if __name__ == "__main__":
    main()

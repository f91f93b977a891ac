"""Writes tests/data/tokenizers: awkward strings, small tokenizers, and what Hugging Face makes of the strings.

Usage: python tests/parity/write_tokenizers.py [--train]
Needs tokenizers, transformers, protobuf, sentencepiece, mistral-common and dashscope (the last two only for their
vocabularies). Written with tokenizers 0.23.3, transformers 5.23.0, mistral-common 1.13.1, dashscope 2.0.2.

strings.bin: the number of strings, then each one's length and bytes (little-endian 32-bit numbers, UTF-8).
NAME/tokenizer.json or other files of a small tokenizer; NAME.hashes: per string a 32-bit hash of its ids (without begin
and end tokens) and of the text they decode to (special tokens kept): FNV-1a over the ids as little-endian 32-bit numbers,
the byte 0xFF and the text, the two halves of the 64 bits xor-ed. Vocabularies out of wheels have no folder here.
`--ids NAME FILE` compares ids that the program tokenizer_speed wrote (--ids), and shows where they differ.
"""

import argparse
import importlib.util
import json
import pathlib
import random
import shutil
import struct
import tempfile
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
        r"|\s+")
LLAMA3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
          r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
MARKERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
WORDS = """The left lower lung zone (region [51, 190, 140, 281]) shows an opacity consistent with pneumonia; no pleural
effusion or pneumothorax. Cardiomediastinal silhouette is within normal limits. Is there any finding in the right upper
lobe? <think> </think> <answer> yes </answer> <box> </box> A: B: C, D I'm you're they've he'll she'd it's we'LL DON'T
naïve café Ångström résumé Straße ΑΒΓ αβγδ привет мир это тест здравствуйте 肺炎 の 可能性 があります 右下肺 野 浸润影 안녕하세요 폐렴
שלום עולם مرحبا بالعالم التهاب رئوي नमस्ते दुनिया สวัสดีชาวโลก xin chào thế giới 3.14159 2026-11-22 1,234,567 100% $5.00
https://example.org/a?b=c&d=e_f CamelCaseWord snake_case_word def f(x): return x**2 != 0x1F600 \\frac{a}{b}""".split()
SPACES = [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n", "\n ", "\u00a0", "\u3000", "\u2003", "\u200b", "\u180e",
          "\u2028", "\u0085", "\x0b", "\x0c", "        ", "\r", " \t \n \r\n  "]
EMOJI = ["👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "🇩🇪🇫🇷🇯🇵", "1️⃣", "#️⃣", "❤️", "☠︎", "🫁", "🧑🏿‍🚀", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "😀", "🤷‍♀️", "🩻", "🫨"]
SPECIALS = MARKERS + ["<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<image>", "<pad>", "<bos>", "<start_of_turn>", "<0x0A>",
                      "<0x41>", "▁", "Ġ", "Ċ", "<|begin_of_text|>", "[TOOL_CALLS]", "<|extra_3|>", "<think>", "<lung>",
                      "<Ångström>", "café", "[MASK]"]


def awkward_strings():
    rng = random.Random(20261122)
    by_category = {}
    for c in range(0x110000):
        if not 0xD800 <= c <= 0xDFFF:
            by_category.setdefault(unicodedata.category(chr(c)), []).append(chr(c))
    everything = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    marks = [chr(c) for c in range(0x300, 0x370)] + [chr(c) for c in range(0x591, 0x5C8)] + [
        chr(c) for c in range(0x64B, 0x660)] + ["\u3099", "\u309a", "\u093c", "\u0323", "\u0327"] + by_category["Mn"]
    numbers = by_category["Nd"] + by_category["No"] + by_category["Nl"]
    out = ["", " ", "a", "\0", "\n", "\ufffd", "\ufeff", "\U0010ffff"]

    def some(population, low, high):
        return "".join(rng.choice(population) for _ in range(rng.randint(low, high)))

    def text(low, high):
        return rng.choice([" ", " ", " ", ", ", "\n", "  "]).join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))

    def ends(string):
        return rng.choice(["", "", "", " ", "  ", "\n"]) + string + rng.choice(["", "", "", " ", "   ", "\n", "\t"])

    for category, characters in sorted(by_category.items()):
        for _ in range(60):
            out.append(ends(some(characters, 1, 6)))
            out.append(some(characters, 1, 2) + rng.choice(SPACES) + rng.choice(WORDS) + some(characters, 0, 3))
    for _ in range(900):  # marks, composed and not
        base = rng.choice("aeiouAEIOUncsyあかはか가각ᄀᄁअड़") + some(marks, 1, 4)
        out.append(ends(unicodedata.normalize(rng.choice(["NFC", "NFD", "NFKD"]), rng.choice(WORDS)) + base))
    for _ in range(300):  # Hangul out of its letters
        out.append("".join(chr(rng.randint(0x1100, 0x1112)) + chr(rng.randint(0x1161, 0x1175)) +
                           rng.choice(["", chr(rng.randint(0x11A8, 0x11C2))]) for _ in range(rng.randint(1, 4))))
    for _ in range(500):  # right to left
        out.append(ends(some("אבגדהוזחטיכלמנסעפצקרשתךםןףץ ", 2, 8) + rng.choice(["", " ", "\u200f"]) +
                        some("ابتثجحخدذرزسشصضطظعغفقكلمنهوي ", 2, 8) + some("٠١٢٣٤٥٦٧٨٩۰۱۲۳", 0, 4)))
    for _ in range(500):
        out.append(ends(rng.choice(SPACES + [""]).join(rng.choice(EMOJI) for _ in range(rng.randint(1, 4)))))
    for _ in range(300):
        out.append(some([chr(c) for c in range(32)] + ["\x7f"] + [chr(c) for c in range(0x80, 0xA0)] + ["a", " "], 1, 8))
    for _ in range(600):
        out.append(ends(some(rng.choice(["0123456789", "0123456789.,", numbers]), 1, rng.choice([3, 7, 60]))))
    for _ in range(900):
        out.append("".join(rng.choice(SPACES) + rng.choice([rng.choice(WORDS), "", "."]) for _ in range(rng.randint(1, 4))))
    for _ in range(500):
        han = [chr(rng.choice([rng.randint(0x4E00, 0x9FFF), rng.randint(0x3041, 0x30FF), rng.randint(0x20000, 0x323AF),
                               rng.randint(0x3000, 0x303F)])) for _ in range(rng.randint(1, 12))]
        out.append(ends("".join(han)))
    for _ in range(300):
        out.append(some(["'", "’", "s", "S", "ſ", "t", "re", "LL", "ll", "D", "ve", "M", " ", "don", "It"], 2, 8))
    for _ in range(900):  # markers between, beside and inside of words
        out.append("".join(rng.choice([rng.choice(SPECIALS), rng.choice(SPECIALS), rng.choice(WORDS), rng.choice(SPACES),
                                       "é", "_"]) for _ in range(rng.randint(1, 7))))
    for _ in range(900):
        out.append(ends(text(1, 14)))
    for _ in range(900):
        out.append("".join(chr(rng.choice(everything)) for _ in range(rng.randint(1, 5))))
    for _ in range(700):  # planes 0 and 1 are where new letters, marks and digits come
        out.append(some([rng.choice(["a", " ", "1"]), chr(rng.randint(0x800, 0x2FFF)), chr(rng.randint(0x10000, 0x1FFFF)),
                         chr(rng.randint(0xA000, 0xABFF)), chr(rng.randint(0x11000, 0x11FFF))], 1, 6))
    for _ in range(60):  # long words
        out.append(some(rng.choice(["a", "ab", "abc ", "lung", "肺炎", "\n", " ", "😀a", "lungopacity", "▁ "]), 100, 300))
    return out


CORPUS = None


def corpus():
    global CORPUS
    if CORPUS is None:
        rng = random.Random(1)
        CORPUS = [" ".join(rng.choice(WORDS) for _ in range(20)) for _ in range(2000)]
    return CORPUS


def byte_level(pattern, size, *, nfc=False, specials=MARKERS, extra=()):
    tokenizer = Tokenizer(models.BPE())
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        *extra, pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def sentencepiece_like(size, specials, *, byte_fallback=True, unknown="<unk>"):
    tokenizer = Tokenizer(models.BPE(byte_fallback=byte_fallback, unk_token=unknown, fuse_unk=True))
    bytes_ = [f"<0x{b:02X}>" for b in range(256)] if byte_fallback else []
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator((" " + line for line in corpus()), trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials + bytes_, show_progress=False, limit_alphabet=120))
    # The trainer makes the bytes added tokens; in LLaMA's files they are plain pieces.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in specials]
    state["normalizer"] = state["pre_tokenizer"] = None
    return Tokenizer.from_str(json.dumps(state))


LLAMA_DECODER = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def train_small_tokenizers():
    qwen = byte_level(QWEN, 900, nfc=True)
    qwen.add_tokens([AddedToken("<think>", special=False, normalized=False), AddedToken("</think>", normalized=True)])
    yield "qwen", qwen

    llama3 = byte_level(LLAMA3, 800, specials=["<|begin_of_text|>", "<|im_end|>"])
    state = json.loads(llama3.to_str())
    state["model"]["ignore_merges"] = True
    llama3 = Tokenizer.from_str(json.dumps(state))
    llama3.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>",
                                                        llama3.token_to_id("<|begin_of_text|>"))])])
    yield "llama3", llama3

    yield "tekken_like", byte_level(TEKKEN, 700, extra=[pre_tokenizers.Digits(individual_digits=True)])

    gpt2 = Tokenizer(models.BPE())
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    gpt2.decoder = decoders.ByteLevel()
    gpt2.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    gpt2.add_tokens([AddedToken("[MASK]", lstrip=True, special=True, normalized=False),
                     AddedToken("<lung>", rstrip=True, normalized=False),
                     AddedToken("café", single_word=True), AddedToken("<image>", lstrip=True, rstrip=True),
                     AddedToken("you're", single_word=True, normalized=False)])
    yield "flags", gpt2

    llama = sentencepiece_like(1000, ["<unk>", "<s>", "</s>"])
    llama.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    llama.decoder = decoders.Sequence(LLAMA_DECODER + [decoders.Strip(" ", 1, 0)])
    llama.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    llama.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    llama.add_tokens([AddedToken("<lung>", normalized=True)])
    yield "llama", llama

    mistral = sentencepiece_like(900, ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    mistral.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", False)
    mistral.decoder = decoders.Sequence(LLAMA_DECODER + [decoders.Strip(" ", 1, 0)])
    yield "mistral", mistral

    gemma = sentencepiece_like(1000, ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"])
    gemma.normalizer = normalizers.Replace(" ", "▁")
    gemma.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    gemma.decoder = decoders.Sequence(LLAMA_DECODER)
    gemma.add_tokens([AddedToken(token, normalized=False) for token in
                      ["\n\n", "\n\n\n", "▁▁", "▁▁▁▁", "\t\t", "<lung>"]])
    yield "gemma", gemma

    unknown = sentencepiece_like(500, ["<unk>"], byte_fallback=False)
    unknown.normalizer = normalizers.NFC()
    unknown.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always", True)
    unknown.decoder = decoders.Metaspace("▁", "always", True)
    unknown.add_tokens([AddedToken("<Ångström>", normalized=True), AddedToken("_", single_word=True)])
    yield "metaspace", unknown


DATA = pathlib.Path(__file__).resolve().parents[1] / "data/tokenizers"
SMALL = ["qwen", "llama3", "tekken_like", "flags", "llama", "mistral", "gemma", "metaspace"]


def small_tokenizers():
    """As they were written: training breaks ties by chance."""
    for name in SMALL:
        yield name, Tokenizer.from_file(str(DATA / name / "tokenizer.json"))


def package_folder(name):
    return pathlib.Path(importlib.util.find_spec(name).origin).parent


def real_tokenizers():
    """Vocabularies that PyPI's packages ship: name and tokenizer."""
    from transformers import LlamaTokenizer
    from transformers.convert_slow_tokenizer import TikTokenConverter
    from transformers.integrations.mistral.tokenizer import MistralConverter

    mistral = package_folder("mistral_common") / "data"
    for name, file, config in [
            ("mistral_v1", "tokenizer.model.v1", {"legacy": False}),
            ("mistral_v1_legacy", "tokenizer.model.v1", {"legacy": True, "add_bos_token": True}),
            ("mistral_v3_no_prefix", "mistral_instruct_tokenizer_240323.model.v3", {"add_prefix_space": False})]:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(mistral / file, pathlib.Path(folder) / "tokenizer.model")
            config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                      **config}
            (pathlib.Path(folder) / "tokenizer_config.json").write_text(json.dumps(config))
            yield name, LlamaTokenizer.from_pretrained(folder).backend_tokenizer
    yield "tekken", MistralConverter(str(mistral / "tekken_240911.json")).converted()
    qwen_file = package_folder("dashscope") / "resources/qwen.tiktoken"
    qwen = TikTokenConverter(str(qwen_file), pattern=QWEN, extra_special_tokens=[
        "<|endoftext|>", "<|im_start|>", "<|im_end|>"] + [f"<|extra_{i}|>" for i in range(205)]).converted()
    qwen.normalizer = normalizers.NFC()  # as QWenTokenizer does
    yield "qwen_tiktoken", qwen


def hash_of(ids, text):
    value = 0xCBF29CE484222325
    for byte in b"".join(struct.pack("<i", i) for i in ids) + b"\xff" + text.encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return (value ^ value >> 32) & 0xFFFFFFFF


def write_small(name, tokenizer, folder):
    folder.mkdir(parents=True, exist_ok=True)
    state = json.loads(tokenizer.to_str())
    (folder / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False, separators=(",", ":")) + "\n")
    if name == "qwen":
        # The same as vocab.json and merges.txt.
        twin = folder.parent / "qwen_files"
        twin.mkdir(exist_ok=True)
        (twin / "vocab.json").write_text(json.dumps(state["model"]["vocab"], ensure_ascii=False) + "\n")
        merges = "".join(" ".join(merge) + "\n" for merge in state["model"]["merges"])
        (twin / "merges.txt").write_text("#version: 0.2\n" + merges)
        keys = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        (twin / "tokenizer_config.json").write_text(json.dumps({
            "tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
            "added_tokens_decoder": {token["id"]: {key: token[key] for key in keys} for token in state["added_tokens"]}},
            indent=1) + "\n")


def all_tokenizers():
    yield from small_tokenizers()
    yield from real_tokenizers()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="train the small tokenizers anew")
    parser.add_argument("--ids", nargs=2, metavar=("NAME", "FILE"))
    args = parser.parse_args()
    strings = awkward_strings()
    if args.ids:
        tokenizer = dict(all_tokenizers())[args.ids[0]]
        data = pathlib.Path(args.ids[1]).read_bytes()
        at, wrong = 0, 0
        for number, string in enumerate(strings):
            (count,) = struct.unpack_from("<i", data, at)
            ids = list(struct.unpack_from(f"<{count}i", data, at + 4))
            at += 4 + 4 * count
            expected = tokenizer.encode(string, add_special_tokens=False).ids
            if ids != expected:
                wrong += 1
                if wrong <= 12:
                    print(number, ascii(string), "\n  got     ", ids, [tokenizer.id_to_token(i) for i in ids],
                          "\n  expected", expected, [tokenizer.id_to_token(i) for i in expected])
        print(f"{wrong} of {len(strings)} strings differ")
        return
    DATA.mkdir(parents=True, exist_ok=True)
    encoded = [string.encode() for string in strings]
    (DATA / "strings.bin").write_bytes(
        struct.pack("<i", len(encoded)) + b"".join(struct.pack("<i", len(s)) + s for s in encoded))
    print(len(strings), "strings")
    if args.train:
        for name, tokenizer in train_small_tokenizers():
            write_small(name, tokenizer, DATA / name)
    for name, tokenizer in all_tokenizers():
        hashes = []
        for string in strings:
            ids = tokenizer.encode(string, add_special_tokens=False).ids
            hashes.append(hash_of(ids, tokenizer.decode(ids, skip_special_tokens=False)))
        (DATA / f"{name}.hashes").write_bytes(struct.pack(f"<{len(hashes)}I", *hashes))
        print(name, tokenizer.get_vocab_size())


if __name__ == "__main__":
    main()

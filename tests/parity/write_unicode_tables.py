"""Writes src/text/unicode_tables.h: where the Unicode of PCRE2 and utf8proc differs from that of HF tokenizers.

Usage: python tests/parity/write_unicode_tables.py   (needs tokenizers, libpcre2-8.so.0 and libutf8proc.so.2)
Written with tokenizers 0.23 (Oniguruma with Unicode 16; unicode-normalization with Unicode 10), PCRE2 10.42
(Unicode 14) and utf8proc 2.8 (Unicode 15). With newer libraries only use the result after the parity tests passed.
"""

import ctypes
import pathlib

from tokenizers import Regex, normalizers, pre_tokenizers

CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf".split()
CHARACTERS = [c for c in range(1, 0x110000) if not 0xD800 <= c <= 0xDFFF]
pcre2 = ctypes.CDLL("libpcre2-8.so.0")
pcre2.pcre2_compile_8.restype = ctypes.c_void_p
pcre2.pcre2_match_data_create_8.restype = ctypes.c_void_p
utf8proc = ctypes.CDLL("libutf8proc.so.2")
utf8proc.utf8proc_NFC.restype = ctypes.c_void_p
libc = ctypes.CDLL(None)


def in_oniguruma(pattern):
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    kept = set()
    for piece, _ in split.pre_tokenize_str("".join(map(chr, CHARACTERS))):
        kept.update(piece)
    return {c for c in CHARACTERS if chr(c) not in kept}


def in_pcre2(pattern):
    error, offset = ctypes.c_int(), ctypes.c_size_t()
    text = pattern.encode()
    code = pcre2.pcre2_compile_8(text, ctypes.c_size_t(len(text)), 0x00080000 | 0x00020000, ctypes.byref(error),
                                 ctypes.byref(offset), None)  # PCRE2_UTF | PCRE2_UCP
    data = pcre2.pcre2_match_data_create_8(ctypes.c_uint32(1), None)
    found = set()
    for c in CHARACTERS:
        subject = chr(c).encode()
        if pcre2.pcre2_match_8(ctypes.c_void_p(code), subject, ctypes.c_size_t(len(subject)), ctypes.c_size_t(0), 0,
                               ctypes.c_void_p(data), None) >= 0:
            found.add(c)
    return found


def nfc(text):
    pointer = utf8proc.utf8proc_NFC(text.encode())
    result = ctypes.string_at(pointer).decode()
    libc.free(ctypes.c_void_p(pointer))
    return result


def width(c):
    return len(chr(c).encode())


def main():
    theirs, ours = {}, {}
    for category in CATEGORIES:
        pattern = rf"\p{{{category}}}"
        theirs |= {c: category for c in in_oniguruma(pattern)}
        ours |= {c: category for c in in_pcre2(pattern)}
    like = {}
    for c in sorted(ours):
        like.setdefault((ours[c], width(c)), c)
    new = sorted(c for c in theirs if c not in ours)
    assert in_pcre2(r"\s") - in_oniguruma(r"\s") == {0x180E} and not in_oniguruma(r"\s") - in_pcre2(r"\s")
    rows = [[0x180E, 0x180E, 0x200B]]
    for c in new:
        han = 0x2EBF0 <= c <= 0x2EE5D or 0x31350 <= c <= 0x323AF
        stand_in = 0x20000 if han else like[theirs[c], width(c)]
        if rows and rows[-1][1] == c - 1 and rows[-1][2] == stand_in:
            rows[-1][1] = c
        else:
            rows.append([c, c, stand_in])
    rows.sort()
    theirs_nfc = normalizers.NFC()
    opaque = {0x11930, 0x11935, 0x11938}  # compose with each other
    opaque |= {c for c in new if theirs[c] in ("Mn", "Mc", "Me")}
    for c in CHARACTERS:
        text = "a" + chr(c) + "\u0323\u0301"
        if theirs_nfc.normalize_str(text) != nfc(text):
            opaque.add(c)
    ranges = []
    for c in sorted(opaque):
        if ranges and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])

    def table(rows):
        cells = ["{" + ", ".join(f"0x{value:X}" for value in row) + "}," for row in rows]
        lines, line = [], "   "
        for cell in cells:
            if len(line) + 1 + len(cell) > 120:
                lines.append(line)
                line = "   "
            line += " " + cell
        return "\n".join(lines + [line])

    out = pathlib.Path(__file__).resolve().parents[2] / "src/text/unicode_tables.h"
    out.write_text(f"""#pragma once

// Written by tests/parity/write_unicode_tables.py.

namespace thinkvg::text {{

// Characters that PCRE2 does not class as Hugging Face's regular expressions do (Unicode 16), each with an older one of
// the same class and the same length in UTF-8.
struct StandIn {{
  char32_t first, last, stand_in;
}};
inline constexpr StandIn kStandIns[] = {{
    // clang-format off
{table(rows)}
    // clang-format on
}};

// Marks that Hugging Face's normalizer (Unicode 10) takes for ordinary characters.
struct CharacterRange {{
  char32_t first, last;
}};
inline constexpr CharacterRange kUnknownToNormalizer[] = {{
    // clang-format off
{table(ranges)}
    // clang-format on
}};

}}  // namespace thinkvg::text
""")
    print(f"{len(rows)} ranges of classes, {len(ranges)} of marks")


if __name__ == "__main__":
    main()

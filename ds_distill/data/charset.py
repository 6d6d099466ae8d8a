"""The encoding of a file, judged by its bytes: text in UTF-8, text in another encoding, or no text."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ds_distill.data.files import COMPRESSED_SUFFIXES, FILE_FORMATS
from ds_distill.data.opening import open_unpacked, read_head
from ds_distill.data.remote import RemoteFile
from ds_distill.utils.errors import UserError

# It matches a byte that is not UTF-8, or half a pair, which JSON escapes may hold.
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROLS = bytes(byte for byte in range(32) if byte not in b"\t\n\v\f\r\x1b")
_BLOCK = 1 << 20
_MAGIC = {
    b"\x1f\x8b\x08": "gzip; rename it to end in .gz",
    b"\x28\xb5\x2f\xfd": "zstandard; rename it to end in .zst",
    b"PAR1": "parquet; rename it to end in .parquet",
    b"BZh": "bzip2; decompress it",
    b"\xfd7zXZ": "xz; decompress it",
    b"PK\x03\x04": "a zip archive; extract it",
    b"%PDF-": "a PDF; extract its text",
    b"ARROW1": "Arrow; rename it to end in .arrow",
}
# Scripts with one byte per letter. Each entry has a language's letters beyond ASCII, the frequent
# ones first, and its encodings in use, by iconv's name and Python's.
_ALPHABETS = (
    (
        "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфёіїєґъў",
        {"WINDOWS-1251": "cp1251", "KOI8-R": "koi8_r", "CP866": "cp866", "ISO-8859-5": "iso8859_5"},
    ),
    ("ατοιενσρκπμλςηυδάίγέωόύχήθώφβξζψ", {"WINDOWS-1253": "cp1253", "ISO-8859-7": "iso8859_7"}),
    ("יוהלארתבשמנםדעכחפקגטסזןצךףץ", {"WINDOWS-1255": "cp1255"}),
    ("اليمنوترعدبهكةسفقحأجشصطىخذضئزثإغءظؤآ،", {"WINDOWS-1256": "cp1256", "ISO-8859-6": "iso8859_6"}),
    ("านรอกเ่งมย้ลวดทสตัะปบิคีห็แจพชขใไผุืโณูถศ์ซธภญำษ", {"CP874": "cp874"}),
)
_ACCENTED = (
    ("éàèüäöíóáñçßêõãåøúæôâîùûëïœ’”“–—«»…‘°¿¡£€", {"WINDOWS-1252": "cp1252", "MACINTOSH": "mac_roman"}),
    ("áíęłąéěóćčřžśšýżńůúäöőüťďźňűăâîșțşţđľĺŕ’”“„–—«»…", {"WINDOWS-1250": "cp1250", "ISO-8859-2": "iso8859_2"}),
    ("ıişğüçöâîû’”“–—…", {"WINDOWS-1254": "cp1254"}),
)
# These rows of a double-byte set hold its common characters.
_LEVEL_1 = {
    "gb18030": ("gb2312", 0xB0, 0xD7),
    "cp950": ("big5", 0xA4, 0xC6),
}


def replace_surrogates(text: str) -> str:
    """Return a text that can be encoded: U+FFFD for a byte that is not UTF-8, and for half a pair of a JSON escape."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)
    return text


def count_characters(data: bytes) -> int:
    """Return how many characters UTF-8 bytes hold: every byte that does not continue a character begins one."""
    codes = np.frombuffer(data, np.uint8)
    return sum(int(np.count_nonzero(codes[i : i + _BLOCK] & 0xC0 != 0x80)) for i in range(0, len(codes), _BLOCK))


def check_text(path: Path | RemoteFile, packed: str) -> None:
    """Raise UserError unless a file begins as text in UTF-8, or in an encoding much like it.

    `packed` is ".gz", ".zst" or another suffix.
    """
    head = read_head(path, packed)
    for magic, format_and_remedy in _MAGIC.items():
        if head.startswith(magic):
            raise UserError(f"{path}: not text but {format_and_remedy}")
    if encoding := _marked_encoding(head):
        raise UserError(f"{path}: encoded in {encoding}, not UTF-8; convert it: {conversion(path, encoding)}")
    controls = len(head) - len(head.translate(None, _CONTROLS))
    # One zero byte in a long text is an accident.
    if b"\0" in head and controls > max(1, len(head) // 1000):
        raise UserError(f"{path}: not text; supported files are {', '.join(FILE_FORMATS)}, plain, .gz or .zst")


def conversion(path: Path | RemoteFile | str, encoding: str) -> str:
    """Return the command that converts a file to UTF-8."""
    name, suffix = shlex.quote(str(path)), Path(str(path)).suffix.lower()
    unpack = {".gz": f"gzip -dc {name} | ", ".zst": f"zstd -dc {name} | "}.get(suffix, "")
    return f"{unpack}iconv -f {encoding} -t UTF-8{'' if suffix in COMPRESSED_SUFFIXES else f' {name}'} > NEW"


def _marked_encoding(head: bytes) -> str | None:
    """Return an encoding that the first bytes prove, or None.

    UTF-16 and UTF-32 show by their mark or, in text that is mostly ASCII, by their zeros.
    ISO-2022-JP shows by its escapes, which switch character sets.
    """
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) and b"\0" in head:
        return "UTF-16"
    if re.search(rb"\x1b\$[@B]", head):
        return "ISO-2022-JP"
    for name, high, low in (("UTF-16LE", head[1::2], head[0::2]), ("UTF-16BE", head[0::2], head[1::2])):
        if high.count(0) > 0.6 * len(high) and len(low.translate(None, _CONTROLS)) > 0.9 * len(low):
            return name
    return None


def likely_encoding(lines: Iterable[bytes]) -> str | None:
    """Return iconv's name of the encoding that lines which are not UTF-8 seem to be in.

    It is None where they look like none.
    """
    sample = b"\n".join(lines)
    shares = {name: share(sample, codec) for name, codec, share in _DOUBLE_BYTE}
    best = max(shares, key=shares.__getitem__)
    if shares[best] >= 0.6:
        return best
    words = [word for word in re.findall(rb"[A-Za-z\x80-\xff]+", sample) if not word.isascii()]
    accented = 2 * sum(bool(re.search(rb"[A-Za-z]", word)) for word in words) > len(words)
    likelihoods = {
        name: _likelihood(sample, codec, letters)
        for letters, codecs in (_ACCENTED if accented else _ALPHABETS)
        for name, codec in codecs.items()
    }
    # WINDOWS-1252 is the usual one where the letters fit several encodings.
    best = max(likelihoods, key=lambda name: likelihoods[name] + (name == "WINDOWS-1252"))
    return best if likelihoods[best] > math.log(0.01) else None


def _likelihood(sample: bytes, codec: str, letters: str) -> float:
    """Return the mean log probability of the letters beyond ASCII.

    It assumes that a language's letters have the frequencies that ranks mostly have (Gusein-Zade
    1988).
    """
    chances = {
        letter: math.log((math.log(len(letters) + 1) - math.log(rank)) / len(letters))
        for rank, letter in enumerate(letters, 1)
    }
    capitals = {letter.upper(): chance + math.log(0.1) for letter, chance in chances.items()}
    foreign = [character for character in sample.decode(codec, "replace") if character > "\x7f"]
    return (
        sum((capitals | chances).get(character, math.log(1e-4)) for character in foreign) / len(foreign)
        if foreign
        else -math.inf
    )


def _share(sample: bytes, codec: str, is_usual: Callable[[str], bool]) -> float:
    """Return the share of usual characters among those beyond ASCII, if a sample is in `codec`.

    The share is 0 where there are many decoding errors.
    """
    foreign = [character for character in sample.decode(codec, "replace") if character > "\x7f"]
    return (
        sum(map(is_usual, foreign)) / len(foreign)
        if foreign and foreign.count("\ufffd") <= 0.02 * len(foreign)
        else 0.0
    )


def _hangul(sample: bytes, codec: str) -> float:
    return _share(sample, codec, lambda character: "가" <= character <= "힣")


def _kana(sample: bytes, codec: str) -> float:
    # About half of a Japanese text is kana.
    return min(1.0, 2 * _share(sample, codec, lambda character: "ぁ" <= character <= "ヿ"))


def _common_han(sample: bytes, codec: str) -> float:
    narrow, first, last = _LEVEL_1[codec]
    return _share(
        sample,
        codec,
        lambda character: (
            first <= character.encode(narrow, "replace")[0] <= last
            or "\u3001" <= character <= "\u3011"
            or character > "\uff00"
        ),
    )


# The narrower sets come first, because their text could be in the later ones too.
_DOUBLE_BYTE = (
    ("EUC-KR", "cp949", _hangul),
    ("EUC-JP", "euc_jp", _kana),
    ("SHIFT_JIS", "cp932", _kana),
    ("GB18030", "gb18030", _common_han),
    ("BIG5", "cp950", _common_han),
)


def lines_not_utf8(path: Path | RemoteFile, packed: str, max_bytes: int = 1 << 16) -> list[bytes]:
    """Return lines of a file that are not UTF-8, at most `max_bytes` bytes of them.

    Only the first 8 MiB are read.
    """
    lines, size, bytes_read = [], 0, 0
    with open_unpacked(path, packed) as stream:
        while size < max_bytes and bytes_read < 1 << 23 and (line := stream.readline(max_bytes)):
            bytes_read += len(line)
            try:
                line.decode()
            except UnicodeDecodeError:
                lines.append(line)
                size += len(line)
    return lines

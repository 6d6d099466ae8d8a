"""Test text in other encodings than UTF-8, and of files that are no text.

Both are recognized by their bytes, after unpacking.
"""

import gzip
import subprocess

import pytest

from ds_distill.data.charset import likely_encoding, lines_not_utf8
from ds_distill.data.readers import documents
from ds_distill.data.sources import split_inputs
from ds_distill.utils.errors import UserError

TEXTS = {
    "Chinese": "在这个世界上，有许多事情是我们无法控制的。人们常常为了生活而奔波，却忘记了欣赏沿途的风景。",
    "Chinese, traditional": "在這個世界上，有許多事情是我們無法控制的。"
    "人們常常為了生活而奔波，卻忘記了欣賞沿途的風景。",
    "Japanese": "私はその人を常に先生と呼んでいた。だからここでもただ先生と書くだけで本名は打ち明けない。",
    "Korean": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "Russian": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "Hebrew": "כל בני אדם נולדו בני חורין ושווים בערכם ובזכויותיהם. כולם חוננו בתבונה ובמצפון",
    "Arabic": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق. وقد وهبوا عقلا وضميرا",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "French": "Tous les êtres humains naissent libres et égaux en dignité et en droits, dans un esprit de fraternité.",
    "German": "Alle Menschen sind frei und gleich an Würde geboren "
    "und sollen einander im Geist der Brüderlichkeit begegnen.",
    "Polish": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. "
    "Są oni obdarzeni rozumem.",
    "Czech": "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv. Jsou nadáni rozumem a svědomím.",
    "Turkish": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. "
    "Akıl ve vicdana sahiptirler ve karşı kardeşlik.",
}


@pytest.mark.parametrize(
    "language, codec, name",
    [
        ("Chinese", "gb18030", "GB18030"),
        ("Chinese", "gbk", "GB18030"),
        ("Chinese, traditional", "big5", "BIG5"),
        ("Japanese", "euc_jp", "EUC-JP"),
        ("Japanese", "cp932", "SHIFT_JIS"),
        ("Korean", "euc_kr", "EUC-KR"),
        ("Russian", "cp1251", "WINDOWS-1251"),
        ("Russian", "koi8_r", "KOI8-R"),
        ("Russian", "cp866", "CP866"),
        ("Russian", "iso8859_5", "ISO-8859-5"),
        ("Greek", "cp1253", "WINDOWS-1253"),
        ("Hebrew", "cp1255", "WINDOWS-1255"),
        ("Arabic", "cp1256", "WINDOWS-1256"),
        ("Thai", "cp874", "CP874"),
        ("French", "cp1252", "WINDOWS-1252"),
        ("German", "latin_1", "WINDOWS-1252"),
        ("French", "mac_roman", "MACINTOSH"),
        ("Polish", "cp1250", "WINDOWS-1250"),
        ("Polish", "iso8859_2", "ISO-8859-2"),
        ("Czech", "cp1250", "WINDOWS-1250"),
        ("Turkish", "cp1254", "WINDOWS-1254"),
    ],
)
def test_an_encoding_is_recognized_and_iconv_reads_it(tmp_path, language, codec, name):
    (tmp_path / "a.txt").write_bytes(b"plain\n" + TEXTS[language].encode(codec) + b"\nplain")
    lines = lines_not_utf8(tmp_path / "a.txt", ".txt")
    assert lines and likely_encoding(lines) == name
    done = subprocess.run(["iconv", "-f", name, "-t", "UTF-8", tmp_path / "a.txt"], capture_output=True, check=True)
    assert TEXTS[language] in done.stdout.decode()


def test_bytes_that_are_no_text_look_like_no_encoding():
    assert likely_encoding([bytes(range(128, 256)) * 3]) is None
    assert likely_encoding([]) is None


@pytest.mark.parametrize(
    "codec, name",
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16LE"),
        ("utf-16-be", "UTF-16BE"),
        ("utf-32", "UTF-32"),
        ("iso2022_jp", "ISO-2022-JP"),
    ],
)
@pytest.mark.parametrize("ending", ["txt", "tsv", "jsonl", "txt.gz"])
def test_wide_text_is_named_with_the_command_that_converts_it(tmp_path, codec, name, ending):
    text = TEXTS["Japanese"] + "\n" if codec == "iso2022_jp" else f"text\n{TEXTS['French']}\n"
    data = text.encode(codec)
    path = tmp_path / f"a.{ending}"
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    with pytest.raises(
        UserError, match=rf"a\.{ending}: encoded in {name}, not UTF-8; convert it: .*iconv -f {name} -t UTF-8"
    ) as error:
        split_inputs([str(path)])
    command = str(error.value).split("convert it: ")[1].replace("NEW", str(tmp_path / "new"))
    subprocess.run(command, shell=True, check=True)
    assert (tmp_path / "new").read_text(encoding="utf-8-sig") == text


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("a.txt", gzip.compress(b"words", mtime=0), r"gzip; rename it to end in \.gz"),
        ("a.jsonl", b"\x28\xb5\x2f\xfd\0\0", r"zstandard; rename it to end in \.zst"),
        ("a.txt", b"PAR1\0\0", r"parquet; rename it to end in \.parquet"),
        ("a.txt", b"%PDF-1.7\n", "a PDF"),
        ("a.csv", b"PK\x03\x04\0\0", "a zip archive"),
        ("a.txt", bytes(range(256)) * 300, r"supported files are \.txt, "),
        ("a.txt.gz", gzip.compress(b"\0\1" * 1000, mtime=0), r"supported files are \.txt, "),
    ],
)
def test_what_is_no_text_is_refused_whatever_it_is_called(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name}: not text.*{message}"):
        split_inputs([str(tmp_path / name)])


@pytest.mark.parametrize("place", [0, 100, 50_000, 100_000])
@pytest.mark.parametrize("packed", [False, True])
def test_a_stray_zero_byte_makes_no_difference_wherever_it_stands(tmp_path, place, packed):
    data = bytearray(b"some words of a text " * 6000)
    data[place] = 0
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    path.write_bytes(gzip.compress(data) if packed else data)
    assert sum(text.count("\0") for text in documents([str(path)])) == 1


def test_utf_8_with_a_mark_is_utf_8(tmp_path):
    for name, data in (("a.txt", "one\n"), ("b.csv", "text\none\n"), ("c.jsonl", '{"text": "one"}\n')):
        (tmp_path / name).write_text(data, encoding="utf-8-sig")
    assert list(documents([str(tmp_path)])) == ["one"] * 3

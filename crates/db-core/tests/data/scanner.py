"""Runs PostgreSQL's scanner and parser on test texts, and rewrites `scanner.tsv`, `statements.tsv` and `nasty.json` beside this script.

    pip install pglast==8.8
    python3 scanner.py FOLDER_OF_PG_PARSE/lib/libpg_query/test/sql

pglast has PostgreSQL 18's scanner and parser. A row of `scanner.tsv` has a file, the number of its relevant tokens, and a hash of them.
One of `statements.tsv` has the same of its statements, if the parser takes the file.
"""

import json
import sys
from pathlib import Path

from pglast.parser import ParseError, scan, split

LITERALS = {"SCONST", "USCONST", "BCONST", "XCONST"}
COMMENTS = {"SQL_COMMENT", "C_COMMENT"}


def spans(sql):
    """The kinds and texts of literals, comments, quoted names and words, in their order."""
    found = []
    for token in scan(sql):
        text = sql[token.start : token.end + 1]
        if token.name in LITERALS:
            # N'…' is two tokens to PostgreSQL.
            if token.start > 0 and found and found[-1] in (["word", "n"], ["word", "N"]) and sql[token.start - 1] in "nN":
                text = found.pop()[1] + text
            found.append(["literal", text])
        elif token.name in COMMENTS:
            found.append(["comment", text])
        elif token.kind != "NO_KEYWORD" or token.name in ("IDENT", "UIDENT"):
            quoted = text.startswith('"') or text[:3].lower() == 'u&"'
            found.append(["name" if quoted else "word", text])
    return found


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def main(folder):
    here = Path(__file__).parent
    rows = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            sql = file.read_bytes().decode()
            tokens = spans(sql)
        except (UnicodeDecodeError, ParseError):
            continue
        said = "".join(f"{kind}\x1f{text}\x1e" for kind, text in tokens)
        rows.append(f"{file.relative_to(folder)}\t{len(tokens)}\t{fnv1a(said.encode()):016x}\n")
    (here / "scanner.tsv").write_text("".join(rows))

    rows = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            sql = file.read_bytes().decode()
            pieces = [piece.rstrip(" \t\n\r\f\v") for piece in split(sql)]
        except (UnicodeDecodeError, ParseError):
            continue
        said = "".join(f"{piece}\x1e" for piece in pieces)
        rows.append(f"{file.relative_to(folder)}\t{len(pieces)}\t{fnv1a(said.encode()):016x}\n")
    (here / "statements.tsv").write_text("".join(rows))

    nasty = []
    for case in json.loads((here / "nasty.json").read_text()):
        nasty.append({"sql": case["sql"], "tokens": spans(case["sql"])})
    lines = ",\n".join(json.dumps(case, ensure_ascii=True) for case in nasty)
    (here / "nasty.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

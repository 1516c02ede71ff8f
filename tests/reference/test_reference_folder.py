"""A folder of pictures in the forms people have, and everything that can be wrong with one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lossdoctor.errors import UsageError
from lossdoctor.reference.captions import CaptionBook, Tokenizer
from lossdoctor.reference.config import PicturesConfig
from lossdoctor.reference.data import Mirrored
from lossdoctor.reference.folder import Folder, open_folder
from lossdoctor.reference.pictures import split, stream

RNG = np.random.default_rng(0)


def picture(path: Path, height: int = 8, width: int = 8) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def opened(root: Path, **settings: object) -> Folder:
    return open_folder(PicturesConfig(path=str(root), **{"size": 8, "readers": 2, **settings}))


def lines(root: Path, *rows: object) -> None:
    root.mkdir(exist_ok=True)
    texts = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (root / "metadata.jsonl").write_text("\n".join(texts), encoding="utf-8")


def test_metadata_gives_each_picture_its_captions(tmp_path: Path) -> None:
    first, second = picture(tmp_path / "a.png"), picture(tmp_path / "deep" / "b.png")
    lines(
        tmp_path,
        {"file_name": "a.png", "text": "a red boat"},
        "",
        {"file_name": "deep/b.png", "text": ["一只猫", "cat"]},
    )
    folder = opened(tmp_path)
    assert (folder.files, folder.names) == (("a.png", "deep/b.png"), None)
    assert [folder.ways[i] for i in folder.labels] == [("a red boat",), ("一只猫", "cat")]
    assert torch.equal(
        ((folder.read() + 1) * 127.5).round().byte(), torch.tensor(np.stack([first, second])).movedim(3, 1)
    )


def test_a_text_beside_each_picture_holds_a_caption_a_line(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"the {name}\n\nletter {name}\n", encoding="utf-8")
    folder = opened(tmp_path)
    assert [folder.ways[i] for i in folder.labels] == [("the a", "letter a"), ("the b", "letter b")]


def test_folders_are_classes_and_templates_name_them(tmp_path: Path) -> None:
    for name in ("sea_lion", "cat/kittens", "cat"):
        picture(tmp_path / name / "x.png")
    folder = opened(tmp_path, templates=("{name}", "one {name}"))
    assert folder.names == ("cat", "sea lion")
    assert folder.labels.tolist() == [0, 0, 1]
    assert folder.ways == [("cat", "one cat"), ("sea lion", "one sea lion")]


def test_pictures_are_cut_to_the_middle_square_in_the_mode_asked_for(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.fromarray(np.repeat(np.arange(32, dtype=np.uint8)[None] * 8, 8, 0)).save(
            (tmp_path / name).with_suffix(".png")
        )
        (tmp_path / f"{name}.txt").write_text("grey", encoding="utf-8")
    for mode, channels in (("RGB", 3), ("L", 1)):
        read = opened(tmp_path, mode=mode).read()
        assert read.shape == (2, channels, 8, 8)
        assert read[0, 0, 0].tolist() == pytest.approx([8 * n / 127.5 - 1 for n in range(12, 20)], abs=1e-5)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / name / "x.png")
    assert (opened(tmp_path).read() == 1).all()


def test_the_split_reads_nothing_and_loses_nothing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(5):
            picture(tmp_path / name / f"{number}.png")
    folder = opened(tmp_path)
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    training, held_out = split(folder, 0.2, seed=0)
    assert sorted(training.files + held_out.files) == sorted(folder.files)
    assert len(held_out) == 2
    assert split(folder, 0.2, seed=0)[0].digest == training.digest != split(folder, 0.2, seed=1)[0].digest


def test_ranks_read_their_own_rows_and_half_is_mirrored(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(20):
            picture(tmp_path / name / f"{number:02}.png")
    folder, views = opened(tmp_path), Mirrored(flip=True)
    whole, (seen,) = views(folder, stream(0, "x"), None)
    assert whole is seen
    rows = torch.arange(10, 20)
    mine, _ = views(folder, stream(0, "x"), rows)
    assert torch.equal(mine, whole[rows])
    plain = folder.read()
    mirrored = [not torch.equal(one, other) for one, other in zip(whole, plain, strict=True)]
    assert 10 < sum(mirrored) < 30
    assert all(
        torch.equal(one, other.flip(-1)) for one, other, turned in zip(whole, plain, mirrored, strict=True) if turned
    )


def test_captions_of_unequal_number_are_all_drawn_and_long_ones_cut() -> None:
    ways = [("alone",), ("one", "two", " ".join(["long"] * 40))]
    tokenizer = Tokenizer((text for way in ways for text in way), words=16)
    book = CaptionBook(tokenizer, ways)
    drawn = tokenizer.decode(book.draw(torch.tensor([0, 1] * 60), stream(0, "x")))
    assert set(drawn[::2]) == {"alone"}
    assert set(drawn[1::2]) == {"one", "two", " ".join(["long"] * 16)}


def test_a_vocabulary_keeps_the_most_frequent_words() -> None:
    tokenizer = Tokenizer(["b b b c c a", "一只猫"], vocabulary=2)
    assert tokenizer.vocabulary == ("<pad>", "<unk>", "b", "c")
    assert Tokenizer(["一只猫 sits"]).decode(Tokenizer(["一只猫 sits"]).encode(["猫 SITS"])) == ["猫 sits"]


def metadata(*rows: object) -> Callable[[Path], None]:
    def made(root: Path) -> None:
        picture(root / "a.png")
        lines(root, *rows)

    return made


def texts(root: Path, **captions: str) -> None:
    for name, caption in captions.items():
        picture(root / f"{name}.png")
        (root / f"{name}.txt").write_text(caption, encoding="utf-8")


def broken(root: Path) -> None:
    texts(root, a="fine", b="broken")
    (root / "b.png").write_bytes((root / "a.png").read_bytes()[:40])


def both(root: Path) -> None:
    picture(root / "a.png")
    picture(root / "cat" / "b.png")


GARBAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda root: root.rmdir(), "is no folder"),
    "empty": (lambda root: (root / "notes.md").write_text("x"), "holds no picture"),
    "one class": (lambda root: picture(root / "cat" / "a.png"), "has one class"),
    "two forms": (both, "holds pictures and folders of pictures"),
    "no caption": (lambda root: picture(root / "a.png"), "without a caption"),
    "empty caption": (lambda root: texts(root, a="fine", b=" ?! \n"), "captions without a word"),
    "shared caption": (lambda root: [picture(root / f"a.{e}") for e in ("png", "jpg")] + [texts(root, a="x")], "share"),
    "too small": (
        lambda root: [texts(root, a="x"), picture(root / "a.png", 4, 99)],
        r"smaller than they are to be: a\.png",
    ),
    "broken": (broken, r"b\.png cannot be read"),
    "no JSON": (metadata("{"), "has a metadata.jsonl that cannot be read"),
    "no text": (metadata({"file_name": "a.png", "caption": "x"}), "of another form"),
    "no such file": (metadata({"file_name": "z.png", "text": "x"}), "names more than there is"),
    "twice": (metadata(*[{"file_name": "a.png", "text": "x"}] * 2), "two lines for one picture"),
    "no lines": (metadata(""), "empty metadata.jsonl"),
    "wordless class": (lambda root: [picture(root / n / "a.png") for n in ("!!", "cat")], "names are no words"),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_is_refused_with_what_to_do(what: str, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    make, words = GARBAGE[what]
    make(root)
    with pytest.raises(UsageError, match=rf"(?s){words}.*expected: .*got: .*to do: "):
        opened(root)


def test_small_pictures_are_welcome_where_that_is_said(tmp_path: Path) -> None:
    texts(tmp_path, a="x", b="y")
    picture(tmp_path / "a.png", 4, 5)
    assert opened(tmp_path, enlarge=True).read().shape == (2, 3, 8, 8)


def test_a_picture_that_breaks_later_is_named(tmp_path: Path) -> None:
    texts(tmp_path, a="x", b="y")
    folder = opened(tmp_path)
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"b\.png cannot be read"):
        folder.read()

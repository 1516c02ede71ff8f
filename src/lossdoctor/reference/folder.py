"""A folder of pictures with captions, in one of the forms people have, read from disk when a batch needs them.

* `metadata.jsonl` beside the pictures, a line for each: {"file_name": "a.jpg", "text": "a red boat"}, the text one
  caption or a list of them. It is the form that Hugging Face's `imagefolder` reads.
* A text file beside each picture, `a.txt` for `a.jpg`: a caption on each line that is not empty.
* A sub-folder for each class; captions are made of its name by `pictures.templates`.

Nothing is kept in memory but names and captions, and nothing is written. The headers of the pictures are looked at
before the training, of `LOOKED_AT` of them where there are more; their pixels when a batch needs them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

from lossdoctor.errors import MissingExtraError, UsageError, mismatch
from lossdoctor.reference.captions import split as words_of
from lossdoctor.reference.config import PicturesConfig

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

ENDINGS: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
METADATA: Final = "metadata.jsonl"
LOOKED_AT: Final = 20_000
"""Headers that are looked at before the training: some seconds on a local disk."""
_TOLD: Final = 3
"""Names in an error text."""


@dataclass(frozen=True)
class Folder:
    """Pictures on disk; see `Pictures`. Shorter sides are made `settings.size`, and the middle square is kept."""

    root: Path
    files: tuple[str, ...]
    labels: Tensor
    ways: Sequence[tuple[str, ...]]
    names: tuple[str, ...] | None
    settings: PicturesConfig

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every picture."""
        return self.settings.shape

    @cached_property
    def digest(self) -> str:
        """Of the names of the files and what is said of each; their pixels are not looked at."""
        told = hashlib.sha256()
        for file, label in zip(self.files, self.labels.tolist(), strict=True):
            told.update(json.dumps([file, self.ways[label]], ensure_ascii=False).encode())
        return told.hexdigest()

    def rows(self, index: Tensor) -> Folder:
        """The pictures at `index` (n,), int64; nothing is read yet."""
        return replace(self, files=tuple(self.files[i] for i in index.tolist()), labels=self.labels[index])

    def read(self) -> Tensor:
        """All of them, (N, C, H, W) float32 in [-1, 1]. Raises UsageError that names a file that cannot be read."""
        pixels = torch.empty(len(self), *self.shape)
        for place, picture in enumerate(self._each(self.files, self._pixels)):
            pixels[place] = torch.from_numpy(picture)
        return pixels.div_(127.5).sub_(1)

    def check(self) -> None:
        """Look at the headers: raises UsageError for a file that is no picture, or smaller than asked for."""
        step = max(1, len(self) // LOOKED_AT)
        files = self.files[::step]
        sizes = dict(zip(files, self._each(files, lambda image: min(image.size)), strict=True))
        small = [file for file, side in sizes.items() if side < self.settings.size]
        if small and not self.settings.enlarge:
            raise UsageError(
                mismatch(
                    f"Some pictures are smaller than they are to be: {_listed(small)}.",
                    f"pictures.size={self.settings.size} pixels at least on the shorter side",
                    f"{len(small):,} of {len(files):,} under it, the smallest {min(sizes.values())}",
                    f"set pictures.size={min(sizes.values())}, leave them out, or blow them up: pictures.enlarge=true",
                )
            )

    def _pixels(self, image: Image) -> np.ndarray:
        from PIL import Image as pillow
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            above = image.convert("RGBA")
            image = pillow.alpha_composite(pillow.new("RGBA", above.size, "white"), above)
        side = (self.settings.size, self.settings.size)
        fitted = ImageOps.fit(image.convert(self.settings.mode), side, pillow.Resampling.LANCZOS)
        return np.asarray(fitted, dtype=np.float32).reshape(*side, -1).transpose(2, 0, 1).copy()

    def _each(self, files: Sequence[str], look: Callable[[Image], T]) -> Iterator[T]:
        def looked(file: str) -> T:
            from PIL import Image as pillow

            try:
                with pillow.open(self.root / file) as image:
                    return look(image)
            except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
                # SyntaxError is what Pillow raises for a broken PNG.
                got = f"{type(error).__name__}: {error}"
                todo = "leave it out, or save it anew; every file with the ending of a picture is taken for one"
                rule = f"{self.root / file} cannot be read."
                raise UsageError(mismatch(rule, "a picture", got, todo)) from error

        with ThreadPoolExecutor(self.settings.readers) as readers:
            yield from readers.map(looked, files)


def open_folder(settings: PicturesConfig) -> Folder:
    """The folder at `settings.path`, its captions read and its headers looked at.

    Raises UsageError for what cannot be trained on: no folder, no picture, pictures in two of the forms, a picture
    without a caption, a caption without a word, one class, a file that is no picture. MissingExtraError without Pillow.
    """
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("pillow", "encoders", "Reading pictures") from error
    assert settings.path is not None
    root = Path(settings.path)
    if not root.is_dir():
        _refuse(root, "is no folder.", "a folder of pictures", "nothing there" if not root.exists() else "a file")
    above = sorted(path.name for path in root.iterdir() if _is_picture(path))
    below = sorted(path for path in root.iterdir() if path.is_dir() and any(map(_is_picture, path.rglob("*"))))
    if (root / METADATA).exists():
        folder = _with_metadata(root, settings)
    elif above and below:
        got = f"{len(above):,} pictures, and more in {_listed([path.name for path in below])}"
        _refuse(root, "holds pictures and folders of pictures.", "one of the two", got)
    elif above:
        folder = _with_texts(root, above, settings)
    elif below:
        folder = _with_classes(root, below, settings)
    else:
        _refuse(root, "holds no picture.", f"files that end in {', '.join(sorted(ENDINGS))}", "none")
    folder.check()
    return folder


def _with_metadata(root: Path, settings: PicturesConfig) -> Folder:
    said: dict[str, tuple[str, ...]] = {}
    lines = (root / METADATA).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {number} of {METADATA}"
        try:
            told = json.loads(line)
        except json.JSONDecodeError as error:
            _refuse(root, f"has a {METADATA} that cannot be read.", "JSON on every line", f"{where}: {error}")
        text = told.get("text") if isinstance(told, dict) else None
        texts = [text] if isinstance(text, str) else text
        file = told.get("file_name") if isinstance(told, dict) else None
        if not isinstance(file, str) or not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            expected = '{"file_name": "a.jpg", "text": "a red boat"}, or a list of texts'
            _refuse(root, f"has a {METADATA} of another form.", expected, f"{where}: {line.strip()[:200]}")
        if file in said:
            _refuse(root, "has two lines for one picture.", "one line for each, text a list", f"{where}: {file} again")
        if not (root / file).is_file():
            _refuse(root, f"has a {METADATA} that names more than there is.", "files in the folder", f"{where}: {file}")
        said[file] = tuple(texts)
    if not said:
        _refuse(root, f"has an empty {METADATA}.", "a line for each picture", f"{len(lines)} lines")
    return _captioned(root, said, settings)


def _with_texts(root: Path, files: Sequence[str], settings: PicturesConfig) -> Folder:
    mute = [file for file in files if not (root / file).with_suffix(".txt").is_file()]
    if mute:
        expected = f"a.txt beside a.png, or a {METADATA}, or a sub-folder for each class"
        _refuse(root, "has pictures without a caption.", expected, f"none for {len(mute):,}: {_listed(mute)}")
    if twins := [stem for stem, count in Counter(Path(file).stem for file in files).items() if count > 1]:
        _refuse(root, "has pictures that would share a caption.", "one name for each", _listed(twins))
    texts = {file: (root / file).with_suffix(".txt").read_text(encoding="utf-8") for file in files}
    said = {file: tuple(line.strip() for line in text.splitlines() if line.strip()) for file, text in texts.items()}
    return _captioned(root, said, settings)


def _captioned(root: Path, said: dict[str, tuple[str, ...]], settings: PicturesConfig) -> Folder:
    mute = [file for file, texts in said.items() if not texts or not all(words_of(text) for text in texts)]
    if mute:
        _refuse(root, "has captions without a word.", "words or figures", f"{len(mute):,}: {_listed(mute)}")
    return Folder(root, tuple(said), torch.arange(len(said)), list(said.values()), None, settings)


def _with_classes(root: Path, folders: Sequence[Path], settings: PicturesConfig) -> Folder:
    names = tuple(folder.name.replace("_", " ").replace("-", " ") for folder in folders)
    if len(folders) < 2:
        _refuse(root, "has one class.", "a sub-folder for each of two classes or more", repr(folders[0].name))
    if wordless := [name for name in names if not words_of(name)]:
        _refuse(root, "has classes whose names are no words.", "words or figures", _listed(wordless))
    files, labels = [], []
    for label, folder in enumerate(folders):
        own = sorted(path.relative_to(root).as_posix() for path in folder.rglob("*") if _is_picture(path))
        files += own
        labels += [label] * len(own)
    ways = [tuple(template.format(name=name) for template in settings.templates) for name in names]
    return Folder(root, tuple(files), torch.tensor(labels), ways, names, settings)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_TOLD]) + (", ..." if len(names) > _TOLD else "")


def _refuse(root: Path, rule: str, expected: str, got: str) -> NoReturn:
    todo = "docs/reference-system.md, Your own pictures and encoders, shows the forms"
    raise UsageError(mismatch(f"{root} {rule}", expected, got, todo))

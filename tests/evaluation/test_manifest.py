"""Checksums of files, in the form of `sha256sum`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pictures import ramp
from PIL import Image
from torchvision.datasets import ImageFolder

from lightly_dira.evaluation.manifest import Manifest


class TestDamage:
    @pytest.mark.parametrize("kind", ["tiff", "bmp", "webp", "jpg", "png"])
    def test_a_manifest_finds_every_change(self, kind: str, tmp_path: Path) -> None:
        """Found: decoders do not notice damage of the right length."""
        (tmp_path / "a").mkdir()
        path = tmp_path / "a" / f"image.{kind}"
        Image.fromarray(ramp(255).astype(np.uint8)).save(path)
        Manifest.of(tmp_path).write(tmp_path / "SHA256SUMS")
        manifest = Manifest.read(tmp_path / "SHA256SUMS")
        data = ImageFolder(tmp_path, loader=manifest.read_image)
        assert data[0][0].shape[:2] == (64, 64)
        manifest.check([path])
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        for check in (manifest.read_image, lambda path: manifest.check([path])):
            with pytest.raises(ValueError, match="another checksum"):
                check(path)
        shutil.copy(path, tmp_path / "other.png")
        with pytest.raises(ValueError, match="not in the manifest"):
            manifest.check([tmp_path / "other.png"])

    def test_no_manifest(self, tmp_path: Path) -> None:
        (tmp_path / "SHA256SUMS").write_text("what is this?\n")
        with pytest.raises(ValueError, match="line 1 of"):
            Manifest.read(tmp_path / "SHA256SUMS")

    def test_a_manifest_is_what_sha256sum_writes(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("")
        manifest = Manifest.of(tmp_path)
        digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        assert manifest.sums == {"a": digest}
        (tmp_path / "sums").write_text(f"{digest} *a\n")
        Manifest.read(tmp_path / "sums").check([tmp_path / "a"])


class TestImageFiles:
    def test_manifests_of_other_tools(self, tmp_path: Path) -> None:
        """Found: names as `find` writes them, digits in capitals, folders by links."""
        real = tmp_path / "real"
        real.mkdir()
        (real / "a.png").write_bytes(b"whole")
        (tmp_path / "link").symlink_to(real)
        digest = Manifest.of(real).sums["a.png"].upper()
        (tmp_path / "SUMS").write_text(f"{digest}  ./a.png\n")
        Manifest.read(tmp_path / "SUMS", real).check([tmp_path / "link/a.png"])
        Manifest.read(tmp_path / "SUMS", tmp_path / "link").check([real / "a.png"])


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
def test_sha256sum_checks_what_is_written(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number} of 3.bin").write_bytes(bytes([number]) * (2**20 + 5))
    for _ in "12":  # the manifest of the first time is no part of the second
        Manifest.of(tmp_path).write(tmp_path / "SUMS")
    command = ["sha256sum", "--check", "--strict", "SUMS"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.splitlines() == [f"{n} of 3.bin: OK" for n in range(3)]
    assert found.returncode == 0
    (tmp_path / "1 of 3.bin").write_bytes(b"changed")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 1

"""Odd images, files and tables: a right result, or an error with the cure."""

from __future__ import annotations

import io
import shutil
import warnings
from pathlib import Path

import albumentations as A
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lightly.transforms import MoCoV2Transform
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.pixels.utils import set_pixel_data
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2

from lightly_dira import DiRATransform, RestorationHead
from lightly_dira.data import white
from lightly_dira.data.image_files import read_image
from lightly_dira.data.pixels import to_pixels
from lightly_dira.evaluation.manifest import Manifest
from lightly_dira.evaluation.read_tables import read_table
from lightly_dira.evaluation.read_volumes import read_nifti
from lightly_dira.evaluation.readers import read_npz
from lightly_dira.weights.official import load_dira_checkpoint
from lightly_dira.weights.pretrained import from_pretrained, save_pretrained

BOUNDED = dict(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.filter_too_much,
    ],
)


@pytest.fixture(autouse=True)
def warn_again() -> None:
    white._warn_of_few_bits.cache_clear()


class TestIntegers:
    @pytest.mark.parametrize("dtype", ["int8", "int32", "uint32", "int64", "int16"])
    def test_bytes_in_wider_types(self, dtype: str) -> None:
        """Found: int64 with 0 to 255 gave targets of at most 0.003."""
        image = np.arange(1024, dtype=dtype).reshape(32, 32) % 100
        with pytest.raises(ValueError, match=r"window=\(low, high\)"):
            DiRATransform()(image)
        with pytest.raises(ValueError, match=r"window=\(low, high\)"):
            DiRATransform(lambda x: torch.from_numpy(x)[None])(image.astype("int64"))
        scaled = to_pixels(image, (0, 99))
        np.testing.assert_allclose(scaled[0], image / 99, atol=1e-6)

    @pytest.mark.parametrize("dtype", ["uint16", "int32", "uint32", "int64"])
    def test_sixteen_bits_in_any_type(self, dtype: str, recwarn) -> None:
        image = np.linspace(0, 60000, 1024).astype(dtype).reshape(32, 32)
        np.testing.assert_allclose(to_pixels(image)[0], image / 65535, atol=1e-6)
        assert not recwarn.list
        assert not to_pixels(np.zeros((32, 32), dtype)).any()

    def test_twelve_bits_are_warned_of_once(self) -> None:
        image = np.linspace(0, 4095, 1024).astype("uint16").reshape(32, 32)
        with pytest.warns(UserWarning, match=r"window=\(0, 4095\)"):
            to_pixels(image)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            to_pixels(image)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype) -> None:
        views = DiRATransform()(torch.rand(1, 40, 40).to(dtype))
        assert views.target.dtype == torch.float32


KINDS_OF_PIXELS = ["uint8", "uint16", "int32", "float32", "float64", "bool"]
STEPS = {
    "crop": lambda: v2.RandomResizedCrop(24),
    "old crop": lambda: v1.RandomResizedCrop(24),
    "flip": lambda: v1.RandomHorizontalFlip(),
    "rotation": lambda: v1.RandomRotation(20),
    "jitter": lambda: v1.ColorJitter(0.4, 0.4, 0.4, 0.1),
    "blur": lambda: v1.GaussianBlur(3),
    "grey": lambda: v1.RandomGrayscale(0.5),
    "solarise": lambda: v2.RandomSolarize(0.5, 0.5),
    "invert": lambda: v2.RandomInvert(0.5),
    "jpeg": lambda: v2.JPEG(50),
    "rand": lambda: v2.RandAugment(),
}


@settings(**BOUNDED)
@given(data=st.data())
def test_any_image_through_any_transform(data) -> None:
    """Targets are the moved image, whatever it comes as; or an error of ours."""
    kind = data.draw(st.sampled_from(KINDS_OF_PIXELS))
    channels = data.draw(st.sampled_from([0, 1, 2, 3, 4]))
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    shape = (40, 36, channels) if channels else (40, 36)
    top = {"uint8": 255, "uint16": 65535, "int32": 65535}.get(kind, 1)
    clean = np.kron(random.random((5, 4)), np.ones((8, 9)))
    clean = np.broadcast_to(clean[..., None] if channels else clean, shape)
    image = (clean > 0.5) if kind == "bool" else (clean * top).astype(kind)
    how = data.draw(st.sampled_from(["array", "tensor", "pil"]))
    if how == "tensor":
        assume(kind not in ("uint16", "bool"))
        image = torch.from_numpy(np.atleast_3d(image).copy()).movedim(-1, 0)
    elif how == "pil":
        modes = {("uint8", 0): "L", ("uint8", 3): "RGB", ("uint8", 4): "RGBA"}
        modes |= {("uint8", 2): "LA", ("uint16", 0): "I;16", ("int32", 0): "I"}
        modes |= {("float32", 0): "F", ("bool", 0): "1"}
        assume((kind, channels) in modes)
        image = Image.fromarray(image)
    names = data.draw(st.lists(st.sampled_from(sorted(STEPS)), max_size=4))
    last = data.draw(st.sampled_from([v1.ToTensor, v2.ToImage, None]))
    steps = [STEPS[name]() for name in names] + ([last()] if last else [])
    library = data.draw(st.sampled_from([v1, v2] if steps else [v1]))
    transform = DiRATransform(library.Compose(steps))
    torch.manual_seed(0)
    try:
        views = transform(image)
    except (ValueError, TypeError) as error:
        assert str(error).startswith("DiRATransform: "), error
        return
    assert views[0].shape[1:] == views.target.shape[1:]
    assert views.target.dtype == torch.float32
    assert 0 <= views.target.min() <= views.target.max() <= 1
    moves = {"crop", "old crop", "flip", "rotation", "rand"} & set(names)
    if not moves:
        expected = clean > 0.5 if kind == "bool" else clean
        expected = expected[..., 0] if channels else expected
        np.testing.assert_allclose(views.target[0], expected, atol=0.01)


class TestTransforms:
    @pytest.mark.parametrize("mode", ["I;16", "I", "F", "LA"])
    def test_old_composes_with_such_images(self, mode: str) -> None:
        """Found: a TypeError of torchvision's from inside."""
        ramp = np.linspace(0, 1, 1600).reshape(40, 40)
        array = {
            "I;16": (65535 * ramp).astype("uint16"),
            "I": (65535 * ramp).astype("int32"),
            "F": ramp.astype("float32"),
            "LA": np.stack([255 * ramp] * 2, axis=-1).astype("uint8"),
        }[mode]
        image = Image.fromarray(array)
        assert image.mode == mode
        compose = v1.Compose([v1.RandomHorizontalFlip(0), v1.ToTensor()])
        views = DiRATransform(compose, distortion=None)(image)
        np.testing.assert_allclose(views.target[0], ramp, atol=5e-3)

    def test_replay(self) -> None:
        """Found: KeyError 'images'."""
        compose = A.ReplayCompose([A.HorizontalFlip(p=0.5), A.Normalize()])
        views = DiRATransform(compose)(np.full((40, 40, 3), 128, np.uint8))
        assert views.target.shape == (1, 40, 40)

    def test_eight_bits_only(self) -> None:
        compose = v2.Compose([v2.ToImage(), v2.JPEG(50)])
        with pytest.raises(ValueError, match=r"JPEG failed .*8 bits"):
            DiRATransform(compose)(np.zeros((40, 40), np.uint16))

    @pytest.mark.parametrize("crop", [v1.FiveCrop, v2.TenCrop])
    def test_several_crops(self, crop) -> None:
        with pytest.raises(TypeError, match="list of transforms, one for each view"):
            DiRATransform(v2.Compose([crop(16)]))


class TestDicom:
    @pytest.mark.parametrize("signed", [0, 1])
    @pytest.mark.parametrize("inverted", [False, True])
    def test_inverted(self, signed: int, inverted: bool, tmp_path: Path) -> None:
        """Found: signed MONOCHROME1 was not."""
        pydicom = pytest.importorskip("pydicom")
        values = np.arange(256, dtype=np.int16 if signed else np.uint16)
        values = values.reshape(16, 16)
        interpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
        path = tmp_path / "image.dcm"
        file = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
        set_pixel_data(file, values, interpretation, 16, generate_instance_uid=False)
        file.save_as(path)
        assert pydicom.dcmread(path).PixelRepresentation == signed
        found = read_image(path).astype(int)
        assert (found[0, 0] > found[0, 1]) == inverted
        if signed:
            assert np.array_equal(found, ~values if inverted else values)


class TestDamage:
    def picture(self) -> Image.Image:
        ramp = np.linspace(0, 255, 64 * 64).reshape(64, 64)
        return Image.fromarray(ramp.astype(np.uint8))

    def test_constant_lower_half(self, tmp_path: Path) -> None:
        array = np.array(self.picture())
        array[32:] = 128
        Image.fromarray(array).save(tmp_path / "image.png")
        with pytest.warns(UserWarning, match=r"lower half of .*image.png is constant"):
            read_image(tmp_path / "image.png")

    @pytest.mark.parametrize("kind", ["tiff", "bmp", "webp", "jpg", "png"])
    def test_a_manifest_finds_every_change(self, kind: str, tmp_path: Path) -> None:
        """Found: decoders do not notice damage of the right length."""
        (tmp_path / "a").mkdir()
        path = tmp_path / "a" / f"image.{kind}"
        self.picture().save(path)
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

    @settings(**BOUNDED | dict(max_examples=60))
    @given(data=st.data())
    def test_files_damaged_at_random(self, data, tmp_path: Path) -> None:
        """A picture, a warning or an error of ours: nothing else."""
        kind = data.draw(st.sampled_from(["tiff", "bmp", "webp", "jpeg", "png"]))
        file = io.BytesIO()
        self.picture().save(file, kind)
        content = bytearray(file.getvalue())
        for _ in range(data.draw(st.integers(1, 20))):
            place = data.draw(st.integers(0, len(content) - 1))
            content[place] = data.draw(st.integers(0, 255))
        content = content[: data.draw(st.integers(1, len(content)))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = read_image(bytes(content))
            except ValueError as error:
                assert str(error).startswith("read_image: "), error
            else:
                assert image.ndim in (2, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        Image.new("L", (20, 20), number).save(tmp_path / f"{number}.png")
    return tmp_path


class TestTables:
    def read(self, folder: Path, columns: dict[str, list], **options):
        columns = {"image": [f"{i}.png" for i in range(4)], **columns}
        pd.DataFrame(columns).to_csv(folder / "table.csv", index=False)
        return read_table(folder / "table.csv", folder, **options)

    def test_empty_labels(self, folder: Path) -> None:
        """Found: they became the class 'nan'."""
        with pytest.raises(ValueError, match=r"1 rows of .* have no label, .* row 2"):
            self.read(folder, {"label": ["a", None, "b", "b"]})

    @pytest.mark.parametrize("value", [0.7, -1, 2, None, "yes"])
    def test_findings(self, folder: Path, value) -> None:
        """Found: 0.7, -1 and 2 became 0, -1 and 2."""
        findings = {"edema": [0, 1, value, 1], "mass": [1.0, 0.0, 1.0, 0.0]}
        options = dict(labels=["edema", "mass"])
        with pytest.raises(ValueError, match=r"findings must be 0 or 1.*uncertain="):
            self.read(folder, findings, **options)

    def test_uncertain_findings(self, folder: Path) -> None:
        findings = {"edema": [0, 1, -1, None], "mass": [1, 0, 1, 0]}
        options = dict(labels=["edema", "mass"])
        expected = {"zeros": [0, 1, 0, 0], "ones": [0, 1, 1, 0], "drop": [0, 1, 0]}
        for uncertain, column in expected.items():
            data = self.read(folder, findings, uncertain=uncertain, **options)
            assert data.labels[:, 0].tolist() == column
            assert len(data.images) == len(data.labels) == len(data.splits)
        findings["edema"][0] = 0.7
        with pytest.raises(ValueError, match=r"got '0.7'"):
            self.read(folder, findings, uncertain="ones", **options)

    @pytest.mark.parametrize("word", ["Train", None, "valid"])
    def test_splits(self, folder: Path, word) -> None:
        """Found: any word was a split."""
        splits = {"split": ["train", "val", word, "test"]}
        with pytest.raises(ValueError, match=r"train, val or test|have no split"):
            self.read(folder, splits, labels=None, split="split")

    def test_missing_patients(self, folder: Path) -> None:
        """Found: a crash in a sort."""
        with pytest.raises(ValueError, match="have no patient"):
            self.read(
                folder, {"patient": [1, None, 2, 3]}, labels=None, patient="patient"
            )

    def test_names_stay_as_they_are(self, folder: Path) -> None:
        """Found: "001" was read as 1."""
        columns = {
            "patient": ["001", "1", "NA", "01"],
            "label": ["10", "9", "2", "010"],
        }
        data = self.read(folder, columns, patient="patient")
        assert data.patients.tolist() == ["001", "1", "NA", "01"]
        assert data.label_names == ("2", "9", "010", "10")
        assert data.labels.tolist() == [3, 1, 0, 2]

    @pytest.mark.parametrize("name", ["../0.png", "a/../../0.png", "absolute"])
    def test_names_that_leave_the_folder(self, folder: Path, name: str) -> None:
        inside = folder / "inside"
        (inside / "a").mkdir(parents=True)
        name = str(folder / "0.png") if name == "absolute" else name
        pd.DataFrame({"image": [name]}).to_csv(folder / "t.csv", index=False)
        with pytest.raises(ValueError, match="allow_outside=True"):
            read_table(folder / "t.csv", inside, labels=None)
        data = read_table(folder / "t.csv", inside, labels=None, allow_outside=True)
        assert data.pixels(0).shape == (20, 20)

    def test_manifest(self, folder: Path) -> None:
        manifest = Manifest.of(folder, "*.png")
        self.read(folder, {}, labels=None, manifest=manifest)
        Image.new("L", (20, 20), 77).save(folder / "2.png")
        with pytest.raises(ValueError, match=r"2\.png has another checksum"):
            self.read(folder, {}, labels=None, manifest=manifest)

    @settings(**BOUNDED)
    @given(
        cells=st.lists(
            st.tuples(
                st.sampled_from(["0.png", "1.png", "2.png", "", "../x.png", "9.png"]),
                st.sampled_from(["0", "1", "-1", "", "0.5", "nan", "a,b", '"']),
                st.sampled_from(["train", "val", "test", "Train", ""]),
                st.sampled_from(["001", "1", "", "NA", "é"]),
            ),
            min_size=1,
            max_size=5,
        )
    )
    def test_any_table(self, cells, folder: Path) -> None:
        table = folder / "fuzz.csv"
        columns = ["image", "finding", "split", "patient"]
        pd.DataFrame(cells, columns=columns).to_csv(table, index=False)
        options = dict(labels=["finding"], split="split", patient="patient")
        try:
            data = read_table(table, folder, **options)
        except (ValueError, FileNotFoundError) as error:
            assert str(error).startswith("read_table: ")
            bad = [
                image in ("", "../x.png", "9.png")
                or finding not in ("0", "1")
                or split not in ("train", "val", "test")
                or not patient
                for image, finding, split, patient in cells
            ]
            assert any(bad)
        else:
            found = zip(
                data.names, data.labels[:, 0], data.splits, data.patients, strict=True
            )
            assert [(a, str(b), c, d) for a, b, c, d in found] == cells


class TestVolumes:
    @pytest.fixture
    def write(self, tmp_path: Path):
        nibabel = pytest.importorskip("nibabel")

        def write(name: str, volume, affine=None) -> Path:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            affine = np.eye(4) if affine is None else affine
            nibabel.save(nibabel.Nifti1Image(volume, affine), path)
            return path

        return write

    ZEROS = np.zeros((4, 5, 6), np.int16)

    def test_same_names(self, write) -> None:
        """Found: `s1/t1.nii` and `s2/t1.nii` became one patient."""
        paths = [write(f"s{i}/t1.nii", self.ZEROS) for i in (1, 2)]
        with pytest.raises(ValueError, match=r"named 't1'.*patients="):
            read_nifti(paths)
        data = read_nifti(paths, patients=r"/(s\d)/")
        assert sorted(set(data.patients)) == ["s1", "s2"]
        assert len(set(data.names)) == len(data.names) == 12
        data = read_nifti(paths, patients=["a", "a"])
        assert set(data.patients) == {"a"}
        with pytest.raises(ValueError, match="finds no patient"):
            read_nifti(paths, patients="sub-(.)")
        with pytest.raises(ValueError, match="as many patients"):
            read_nifti(paths, patients=["a"])

    def test_names_with_dots(self, write) -> None:
        """Found: `a.1.nii` and `a.2.nii` were one patient, `a`."""
        paths = [write(f"a.{i}.nii.gz", self.ZEROS) for i in (1, 2)]
        assert sorted(set(read_nifti(paths).patients)) == ["a.1", "a.2"]

    def test_masks(self, write) -> None:
        """Found: floored probabilities, other grids and too many were accepted."""
        path = write("v.nii", self.ZEROS)
        probabilities = write("p.nii", np.full(self.ZEROS.shape, 0.4, np.float32))
        with pytest.raises(ValueError, match=r"holds 0.4.*whole numbers"):
            read_nifti([path], masks=[probabilities])
        shifted = write("s.nii", self.ZEROS, np.diag([2.0, 1, 1, 1]))
        other = write("o.nii", np.zeros((4, 5, 7), np.int16))
        for mask in (shifted, other):
            with pytest.raises(ValueError, match="different grids"):
                read_nifti([path], masks=[mask])
        with pytest.raises(ValueError, match="as many masks, got 2"):
            read_nifti([path], masks=[path, path])
        whole = write("w.nii", np.ones(self.ZEROS.shape, np.float32))
        assert read_nifti([path], masks=[whole]).mask(0).all()

    def test_damaged(self, write, tmp_path: Path) -> None:
        path = write("v.nii.gz", self.ZEROS)
        path.write_bytes(path.read_bytes()[:-30])
        (tmp_path / "text.nii").write_text("no volume")
        for broken in (path, tmp_path / "text.nii"):
            with pytest.raises(ValueError, match="is not a NIfTI file, or is damaged"):
                read_nifti([broken])


class TestArrays:
    @pytest.mark.parametrize("kind", ["npy", "text", "cut", "pickled"])
    def test_other_files(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "file.npz"
        if kind == "npy":
            with path.open("wb") as file:
                np.save(file, np.zeros(3))
        elif kind == "text":
            path.write_text("images")
        else:
            values = np.array([{}]) if kind == "pickled" else np.zeros((9, 32, 32))
            np.savez_compressed(path, images=values)
        if kind == "cut":
            path.write_bytes(path.read_bytes()[:-60])
        with pytest.raises(ValueError, match=r"read_npz: .*savez"):
            read_npz(path)

    def test_manifest(self, tmp_path: Path) -> None:
        path = tmp_path / "file.npz"
        np.savez(path, images=np.zeros((2, 32, 32), np.uint8))
        manifest = Manifest.of(tmp_path)
        assert len(read_npz(path, manifest=manifest)) == 2
        np.savez(path, images=np.ones((2, 32, 32), np.uint8))
        with pytest.raises(ValueError, match="another checksum"):
            read_npz(path, manifest=manifest)


class TestWeights:
    def test_not_finite(self, tmp_path: Path) -> None:
        backbone, head = resnet18(), RestorationHead([64, 64, 128, 256, 512])
        backbone.layer1[0].conv1.weight.data[0, 0, 0, 0] = torch.nan
        save_pretrained(tmp_path, backbone, head)
        with pytest.raises(ValueError, match=r"NaN or infinity in layer1.0.conv1"):
            from_pretrained(tmp_path, resnet18())
        torch.save(backbone.state_dict(), tmp_path / "weights.pth")
        with pytest.raises(ValueError, match="NaN or infinity"):
            load_dira_checkpoint(tmp_path / "weights.pth")

    def test_of_another_type(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        torch.save(resnet18().half().state_dict(), path)
        with pytest.warns(UserWarning, match=r"stored as torch.float16"):
            load_dira_checkpoint(path)
        state = resnet18().state_dict()
        state["conv1.weight"] = state["conv1.weight"].char()
        torch.save(state, path)
        with pytest.raises(ValueError, match=r"conv1.weight are torch.int8"):
            load_dira_checkpoint(path)

    def test_damaged(self, tmp_path: Path) -> None:
        head = RestorationHead([64, 64, 128, 256, 512])
        save_pretrained(tmp_path, resnet18(), head)
        path = tmp_path / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ValueError, match="not a file of safetensors"):
            from_pretrained(tmp_path, resnet18())
        with pytest.raises(ValueError, match="not a file of safetensors"):
            load_dira_checkpoint(path)


def test_usual_transforms_are_quiet(recwarn) -> None:
    DiRATransform(MoCoV2Transform(input_size=32))(Image.new("RGB", (64, 64)))
    assert not [w for w in recwarn if "DiRA" in str(w.message)]

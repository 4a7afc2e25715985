"""Decoded pixels against Pillow, byte for byte; tensors against torchvision's PIL transforms, bit for bit.

Every difference from Pillow is listed by file in DIFFERENT with its reason. A file that is listed but not
different fails too, so the list stays true.
"""

import math

import numpy as np
import pytest
from PIL import Image, ImageOps

from pixels_support import Refused, table

Image.init()  # all plugins: multi-picture files open through the JPEG one
Image.MAX_IMAGE_PIXELS = None
pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged files

# What a difference may be.
PIXELS = "pixels"  # both decode, to different bytes
ORIENTATION = "orientation"  # the stored pixels are equal, Pillow turns them
ACCEPTED = "accepted"  # Pillow refuses, resnetd decodes
REFUSED = "refused"  # Pillow decodes, resnetd refuses

GREY16 = (PIXELS, "16-bit grey: Pillow saturates at 255 (its bug), resnetd keeps the high byte")
TEXT_ORIENTATION = (ORIENTATION, "orientation in a text chunk (raw profile or XMP), which is not read; eXIf is")
ANCILLARY = (ACCEPTED, "Pillow trips over an ancillary chunk that resnetd skips unread")
CHECKSUM = (REFUSED, "the image data's CRC is wrong: libpng checks it, Pillow does not")
WARNINGS = (REFUSED, "more than 100 places of damage: Pillow decodes on without a bound")
NO_END = (REFUSED, "the file ends inside a segment before its end marker; Pillow forgives that after the last row")
BAD_PALETTE = (PIXELS, "an index past the palette: Pillow gives its default grey ramp, libpng black")

DIFFERENT = {
    "pngsuite": {
        **dict.fromkeys(
            "basi0g16 basn0g16 g03n0g16 g04n0g16 g05n0g16 g07n0g16 g10n0g16 g25n0g16 oi1n0g16 oi2n0g16 oi4n0g16 "
            "oi9n0g16 tbwn0g16".split(),
            GREY16,
        ),
        "xcsn0g01": CHECKSUM,
    },
    "pillow": {
        "i_trns": GREY16,
        "exif_imagemagick_orientation": TEXT_ORIENTATION,
        "xmp_tags_orientation": TEXT_ORIENTATION,
        "xmp_tags_orientation_exiftool": TEXT_ORIENTATION,
        "png_decompression_dos": (ACCEPTED, "Pillow refuses the size of its inflated text, which is skipped unread"),
        "unknown_compression_method": ANCILLARY,
        "truncated_exif_dpi": (ACCEPTED, "Pillow's search for a resolution fails in the damaged EXIF block"),
    },
    "jpeg": {
        "grayscale_16x24_sampling2x2.png": GREY16,
        "grayscale_24x16_sampling2x2.png": GREY16,
    },
    "exif-orientation": {},
    "photos": {},
    "jpeg-hostile": {
        "imagetestsuite__5482a54657765056f1a94116a8dbffe7": NO_END,
        "imagetestsuite__8a9cc8eeed66aeb423a91c44111d9450": NO_END,
        "imagetestsuite__8e5e74dbf9b68a322fbb9512db837329": WARNINGS,
        "imagetestsuite__b55977028a3a574336966b6536640fc9": WARNINGS,
        "imagetestsuite__f6b4389c3cf0f5997b2e5a4b905aea8d": WARNINGS,
    },
    "png-hostile": {
        **dict.fromkeys(
            "regression-palette-8 small-palette-1 small-palette-2 small-palette-4 small-palette-8 test-palette-1 "
            "test-palette-2 test-palette-4 test-palette-8".split(),
            BAD_PALETTE,
        ),
        "badcrc": CHECKSUM,
        "stb__xcsn0g01": CHECKSUM,
        "empty_ancillary_chunks": ANCILLARY,
        "huge_IDAT": (REFUSED, "the image data chunk claims 1 GB and ends early; Pillow has enough pixels by then"),
    },
}

# A file that cannot be decoded is the client's mistake, one of these.
CLIENT_STATUSES = {
    "EMPTY_BODY",
    "NOT_AN_IMAGE",
    "IMAGE_TRUNCATED",
    "IMAGE_CORRUPT",
    "IMAGE_UNSUPPORTED",
    "IMAGE_TOO_LARGE",
}


def pillow_open(path):
    """The loaded image, or the exception with which Pillow refuses it."""
    try:
        image = Image.open(path, formats=("JPEG", "PNG"))
        image.load()
        return image
    except Exception as error:  # whatever Pillow raises is a refusal
        return error


def pillow_transpose(image):
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow gives up on a damaged EXIF block: nothing to apply
        return image


def rgb(image):
    return np.asarray(image.convert("RGB"))


def compare(driver, path):
    """("equal"|"refused by both"|a kind of difference, detail)"""
    reference = pillow_open(path)
    try:
        raw = driver.decode(path, orient=False)
        oriented = driver.decode(path)
    except Refused as refused:
        assert refused.status in CLIENT_STATUSES and refused.text, f"{path.name}: {refused}"
        if isinstance(reference, Exception):
            return "refused by both", str(refused)
        return REFUSED, str(refused)
    if isinstance(reference, Exception):
        return ACCEPTED, f"Pillow: {reference}"
    if not np.array_equal(raw, rgb(reference)):
        return PIXELS, f"Pillow: mode {reference.mode}, {reference.size}; resnetd: {raw.shape}"
    if not np.array_equal(oriented, rgb(pillow_transpose(reference))):
        return ORIENTATION, ""
    return "equal", ""


def listed(corpus, path):
    """The entry for a file: by name, by stem, or by the stem after a prefix as in crashers__badcrc.png."""
    entries = DIFFERENT[corpus]
    for key in (path.name, path.stem, path.stem.split("__", 1)[-1]):
        if key in entries:
            return key, entries[key]
    return None, (None, None)


@pytest.mark.parametrize("name", DIFFERENT)
def test_corpus(driver, corpus, name):
    driver.limits()
    files = corpus(name)
    row = table[name] = [len(files), 0, 0, 0]
    wrong, used = [], set()
    for path in files:
        outcome, detail = compare(driver, path)
        key, (expected, reason) = listed(name, path)
        used.add(key)
        if expected is not None:
            row[2] += 1
            if outcome != expected:
                wrong.append(f"{path.name}: listed as {expected} ({reason}) but found {outcome} {detail}")
        elif outcome == "equal":
            row[1] += 1
        elif outcome == "refused by both":
            row[3] += 1
        else:
            wrong.append(f"{path.name}: {outcome}, not listed: {detail}")
    wrong += [f"{key}: listed, but there is no such file" for key in DIFFERENT[name].keys() - used]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("name", ["jpeg-hostile", "png-hostile", "pngsuite", "pillow"])
def test_tight_limits(driver, corpus, name):
    """With little memory, few pixels and a short time, still an answer for every file, and the right kind."""
    allowed = CLIENT_STATUSES | {"MEMORY_BUDGET", "DEADLINE"}
    files = corpus(name)  # skips before the driver's limits are touched
    try:
        for limits in (dict(max_pixels=1000), dict(max_bytes=200_000), dict(timeout_ms=1)):
            driver.limits(**limits)
            for path in files:
                try:
                    pixels = driver.decode(path)
                    assert pixels.shape[0] * pixels.shape[1] <= limits.get("max_pixels", math.inf), path.name
                    assert pixels.size <= limits.get("max_bytes", math.inf), path.name
                except Refused as refused:
                    assert refused.status in allowed, f"{path.name}: {refused}"
    finally:
        driver.limits()  # the driver serves the tests that follow


# --- images made here: every kind of file that the codecs tell apart -----------------------------


def noise(width, height, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng((seed, width, height, channels)).integers(0, 256, shape, dtype=np.uint8)


def save(tmp_path, image, suffix, **options):
    path = tmp_path / f"image.{suffix}"
    image.save(path, **options)
    return path


def check(driver, path):
    outcome, detail = compare(driver, path)
    assert outcome == "equal", f"{outcome} {detail}"


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (8, 8), (17, 16), (33, 49), (64, 3), (3, 64), (130, 70)])
@pytest.mark.parametrize(
    "mode, options",
    [
        ("RGB", dict(subsampling=0, quality=95)),
        ("RGB", dict(subsampling=1)),
        ("RGB", dict(subsampling=2)),
        ("RGB", dict(subsampling=2, progressive=True)),
        ("RGB", dict(quality=10, progressive=True, subsampling=0)),
        ("L", {}),
        ("L", dict(progressive=True)),
        ("CMYK", {}),
        ("CMYK", dict(progressive=True)),
    ],
)
def test_jpeg_kinds(driver, tmp_path, mode, options, size):
    channels = {"RGB": 3, "L": 1, "CMYK": 4}[mode]
    image = Image.frombytes(mode, size, noise(*size, channels).tobytes())
    check(driver, save(tmp_path, image, "jpg", **options))


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (8, 8), (33, 49), (1, 70), (70, 1)])
@pytest.mark.parametrize(
    "mode, options",
    [
        ("RGB", {}),
        ("RGBA", {}),
        ("L", {}),
        ("LA", {}),
        ("1", {}),
        ("L", dict(transparency=7)),
        ("RGB", dict(transparency=(1, 2, 3))),
        ("P", {}),
        ("P", dict(bits=1)),
        ("P", dict(bits=2)),
        ("P", dict(bits=4)),
        ("P", dict(transparency=0)),
        ("P", dict(transparency=bytes(range(0, 256, 16)))),
    ],
)
def test_png_kinds(driver, tmp_path, mode, options, size):
    channels = {"RGB": 3, "RGBA": 4, "L": 1, "LA": 2, "1": 1, "P": 1}[mode]
    pixels = noise(*size, channels)
    if mode == "1":
        image = Image.fromarray(pixels).convert("1")
    elif mode == "P":
        image = Image.fromarray(pixels % 2 ** options.get("bits", 8), "P")
        image.putpalette(noise(256, 3, 1).tobytes())
    else:
        image = Image.frombytes(mode, size, pixels.tobytes())
    check(driver, save(tmp_path, image, "png", **options))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (40, 33), (65, 31), (1, 50), (50, 1)])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation(driver, tmp_path, orientation, size, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, Image.fromarray(noise(*size)), suffix, exif=exif)
    check(driver, path)
    for orient in (True, False):
        image = Image.open(path)
        grey = np.asarray((pillow_transpose(image) if orient else image).convert("L"))
        assert np.array_equal(driver.decode(path, orient=orient, channels=1)[:, :, 0], grey)


@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_jpeg(driver, tmp_path, progressive):
    """Cut anywhere after the signature, and also just before the end marker: truncated."""
    whole = save(tmp_path, Image.fromarray(noise(40, 30)), "jpg", progressive=progressive).read_bytes()
    assert whole.endswith(b"\xff\xd9")
    path = tmp_path / "cut.jpg"
    for size in range(3, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(Refused) as refused:
            driver.decode(path)
        assert refused.value.status == "IMAGE_TRUNCATED", f"{size} of {len(whole)} bytes: {refused.value}"
    path.write_bytes(whole + b"trailing bytes")
    check(driver, path)


def test_truncated_png(driver, tmp_path):
    """Cut anywhere: truncated, until only the end chunk is missing, which Pillow takes too."""
    whole = save(tmp_path, Image.fromarray(noise(20, 15)), "png").read_bytes()
    assert whole[-8:-4] == b"IEND"
    path = tmp_path / "cut.png"
    for size in range(8, len(whole)):
        path.write_bytes(whole[:size])
        pixels_end = len(whole) - 12
        if size >= pixels_end:
            check(driver, path)
            continue
        with pytest.raises(Refused) as refused:
            driver.decode(path)
        assert refused.value.status == "IMAGE_TRUNCATED", f"{size} of {len(whole)} bytes: {refused.value}"


# --- tensors ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transforms():
    return pytest.importorskip("torchvision.transforms", reason="torchvision is absent: tensors were NOT compared")


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def normalised(transforms, image):
    """float32 [H, W, C] as ToTensor and Normalize give it"""
    count = len(image.getbands())
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN[:count], STD[:count])])
    return steps(image).permute(1, 2, 0).numpy()


def area_size(width, height, limit):
    """The rule of preprocess.h for a size that exceeds the pixel limit."""
    short, long = sorted((width, height))
    new_short = max(1, math.isqrt(limit * short // long))
    new_long = min(new_short * long // short, limit // new_short)
    return (new_short, new_long) if width <= height else (new_long, new_short)


def fit_size(width, height, fit, limit):
    short, long = sorted((width, height))
    size = (fit, fit * long // short) if width <= height else (fit * long // short, fit)
    if size[0] * size[1] > limit:
        return area_size(width, height, limit), True
    return size, False


def same_bits(got, want):
    assert got.shape == want.shape, (got.shape, want.shape)
    assert np.array_equal(got.view(np.uint32), np.ascontiguousarray(want).view(np.uint32))


def check_crop(driver, transforms, path, image, resize, crop=224):
    got, scaled = driver.tensor(path, "crop", resize=resize, crop=crop, channels=len(image.getbands()))
    evaluation = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(crop)])
    same_bits(got, normalised(transforms, evaluation(image)))
    assert not scaled


def check_fit(driver, transforms, path, image, fit=288, limit=1048576):
    got, scaled = driver.tensor(path, "fit", fit=fit, max_native_pixels=limit, channels=len(image.getbands()))
    size, bounded = fit_size(*image.size, fit, limit)
    same_bits(got, normalised(transforms, image.resize(size, Image.Resampling.BILINEAR)))
    assert scaled == bounded


def check_native(driver, transforms, path, image, limit):
    got, scaled = driver.tensor(path, "native", max_native_pixels=limit, channels=len(image.getbands()))
    bounded = image.size[0] * image.size[1] > limit
    if bounded:
        image = image.resize(area_size(*image.size, limit), Image.Resampling.BILINEAR)
    same_bits(got, normalised(transforms, image))
    assert scaled == bounded
    assert got.shape[0] * got.shape[1] <= limit


def test_photos_tensors(driver, transforms, corpus):
    count = 0
    for path in corpus("photos") + corpus("exif-orientation"):
        image = pillow_transpose(Image.open(path))
        for mode in ("RGB", "L"):
            converted = image.convert(mode)
            check_crop(driver, transforms, path, converted, 256)
            check_crop(driver, transforms, path, converted, 232)
            check_fit(driver, transforms, path, converted)
            check_native(driver, transforms, path, converted, 1048576)
            check_native(driver, transforms, path, converted, 30000)
            count += 5
    table["tensors of photos"] = [count, count, 0, 0]


# Sizes whose scaled long side or crop offset sits on or beside a rounding edge, and extreme ones.
EDGE_SHAPES = (
    [(1, 1), (1, 500), (500, 1), (2, 2), (3, 5), (223, 225), (225, 223), (224, 224), (3000, 20), (20, 3000)]
    + [(n, 256) for n in range(254, 264)]
    + [(256, n) for n in range(254, 264)]
    + [(n, 232) for n in range(230, 240)]
    + [(232, n) for n in range(230, 240)]
    + [(n, 333) for n in range(331, 352)]
    + [(500, n) for n in (331, 332, 333, 334, 374, 375, 376, 499, 500, 501)]
    + [(1023, 1025), (1024, 1024), (1025, 1024), (1024, 1025), (1048, 1000), (1049, 1000), (513, 767), (4001, 3)]
)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_edge_shapes(driver, transforms, tmp_path, mode):
    count = 0
    for width, height in EDGE_SHAPES:
        image = Image.fromarray(noise(width, height)).convert(mode)
        path = save(tmp_path, image, "png", compress_level=0)
        check_crop(driver, transforms, path, image, 256)
        check_crop(driver, transforms, path, image, 232)
        check_fit(driver, transforms, path, image)
        check_fit(driver, transforms, path, image, fit=64)
        check_native(driver, transforms, path, image, 1048576)
        check_native(driver, transforms, path, image, 5000)
        check_native(driver, transforms, path, image, width * height)
        check_native(driver, transforms, path, image, max(1, width * height - 1))
        count += 8
    table[f"tensors of odd shapes, {mode}"] = [count, count, 0, 0]


def test_small_windows(driver, transforms, tmp_path):
    """Every crop from 1 to 40 of every parity: offsets half to even, windows narrower than a vector."""
    for width, height in ((50, 40), (41, 40), (40, 43), (97, 211)):
        image = Image.fromarray(noise(width, height))
        path = save(tmp_path, image, "png")
        for crop in range(1, 41):
            check_crop(driver, transforms, path, image, 40, crop)


@pytest.mark.parametrize("wide", [False, True])
def test_extreme_crop(driver, transforms, tmp_path, wide):
    """1x65500 scaled to 256 would take 12.9 GB; only the window is computed."""
    length = 65500
    size = (length, 1) if wide else (1, length)
    image = Image.fromarray(noise(*size))
    path = save(tmp_path, image, "png")
    got, _ = driver.tensor(path, "crop", resize=256, crop=224)
    # The short side is one pixel: it is repeated, so a line of the reference is enough.
    long_side, first = 256 * length, round((256 * length - 224) / 2.0)
    line = image.resize((long_side, 1) if wide else (1, long_side), Image.Resampling.BILINEAR)
    box = (first, 0, first + 224, 1) if wide else (0, first, 1, first + 224)
    same_bits(got, normalised(transforms, line.crop(box).resize((224, 224), Image.Resampling.NEAREST)))
    check_fit(driver, transforms, path, image, fit=64)


def test_refused_crop(driver, tmp_path):
    path = save(tmp_path, Image.fromarray(noise(30, 20)), "png")
    with pytest.raises(Refused) as refused:
        driver.tensor(path, "crop", resize=200, crop=224)
    assert refused.value.status == "INPUT_SIZE"

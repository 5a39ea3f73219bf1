"""FID, KID and CMMD agree with other people's code and with their equations in float64."""

import hashlib
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Generator, Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
from torchmetrics.image.kid import poly_mmd
from torchvision.models import inception_v3
from torchvision.transforms.v2 import functional as T

from benchmark.config.config import parse
from benchmark.data import load_concept
from benchmark.plan import build
from benchmark.runner.stages.scoring import distance
from benchmark.store.artifacts import save_features
from metrics import embedders, sets
from metrics.cmmd import CMMD
from metrics.fid import FID
from metrics.kid import KID, cubic
from tests.runs import tiny_config

RNG = Generator()
TORCH_FIDELITY, TORCHVISION = "inception:torch-fidelity", "inception:torchvision"


def samples(n: int, m: int, d: int, *, seed: int = 0, shift: float = 0.3) -> tuple[Tensor, Tensor]:
    """Two sets with correlated coordinates, another mean and another spread, float32 as the embedders give them."""
    g = Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=g) / math.sqrt(d)
    f = torch.randn(n, d, generator=g) @ mix
    return f, (torch.randn(m, d, generator=g) * 1.2) @ mix + shift


def torchmetrics_fid(f: Tensor, g: Tensor) -> float:
    embedder = torch.nn.Identity()
    embedder.num_features = f.shape[1]
    metric = FrechetInceptionDistance(feature=embedder)
    metric.update(g.double(), real=True)
    metric.update(f.double(), real=False)
    return float(metric.compute())


def scipy_fid(f: Tensor, g: Tensor) -> float:
    """The paper's formula; S_f S_g and the symmetric S_f^(1/2) S_g S_f^(1/2) have the same eigenvalues."""
    f, g = f.double().numpy(), g.double().numpy()
    s_f, s_g = np.cov(f, rowvar=False), np.cov(g, rowvar=False)
    values, vectors = scipy.linalg.eigh(s_f)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(scipy.linalg.eigvalsh(root @ s_g @ root).clip(0)).sum()
    return float(((f.mean(0) - g.mean(0)) ** 2).sum() + np.trace(s_f) + np.trace(s_g) - 2 * cross)


SIZES = [(10, 12, 64), (10, 10, 512), (100, 90, 256), (1000, 1000, 256), (5000, 4000, 128), (40, 5000, 128)]
SLOW = [pytest.param(n, n, 2048, marks=pytest.mark.slow) for n in (50, 2000, 5000)]


@pytest.mark.parametrize(("n", "m", "d"), [*SIZES, *SLOW])
def test_fid_equals_torchmetrics_and_scipy(n: int, m: int, d: int) -> None:
    f, g = samples(n, m, d)

    ours = FID().distance(f, g, rng=RNG)["value"]

    assert ours == pytest.approx(torchmetrics_fid(f, g), rel=1e-3)
    assert ours == pytest.approx(scipy_fid(f, g), rel=1e-3)


def test_fid_is_scipys_matrix_root_where_there_are_more_images_than_features() -> None:
    f, g = samples(300, 200, 32)
    s_f, s_g = np.cov(f.double(), rowvar=False), np.cov(g.double(), rowvar=False)
    root = scipy.linalg.sqrtm(s_f @ s_g).real
    mean = f.double().mean(0) - g.double().mean(0)

    expected = float(mean.square().sum()) + np.trace(s_f) + np.trace(s_g) - 2 * np.trace(root)

    assert FID().distance(f, g, rng=RNG)["value"] == pytest.approx(expected, rel=1e-9)


def test_fid_of_one_feature_is_the_textbook_distance_of_two_gaussians() -> None:
    f, g = samples(50, 70, 1)
    expected = float((f.mean() - g.mean()) ** 2 + (f.std() - g.std()) ** 2)

    assert FID().distance(f, g, rng=RNG)["value"] == pytest.approx(expected, rel=1e-5)
    assert FID().distance(f, f, rng=RNG)["value"] == pytest.approx(0, abs=1e-12)


def test_fid_claims_no_interval_and_warns_below_two_thousand_images(tmp_path: Path) -> None:
    found = FID().distance(*samples(5, 5, 3), rng=RNG)
    assert math.isnan(found["ci_low"]) and math.isnan(found["ci_high"])

    flags = {}
    for n in (1999, 2000):
        for role in ("images", "reference"):
            (tmp_path / f"{role}{n}").mkdir()
            save_features(tmp_path / f"{role}{n}", torch.randn(n, 2, generator=Generator().manual_seed(n)))
        task: Any = SimpleNamespace(
            kind="score",
            plugin="fid",
            concept=None,
            seed=0,
            fields={"identity": "x"},
            parents={role: f"{role}{n}" for role in ("images", "reference")},
        )
        bench: Any = SimpleNamespace(store=SimpleNamespace(path=lambda key: tmp_path / key))
        flags[n] = distance(FID(), task, bench, lambda **_: None)[1]["flags"]
    assert flags == {1999: ["small sample"], 2000: []}


def test_distances_share_the_features_of_an_image(tmp_path: Path) -> None:
    metrics = [{"use": name, "embedder": "mini:judge"} for name in ("fid", "kid", "cmmd")]
    raw = tiny_config(tmp_path, Path("model"), attacks=["none"], metrics=metrics)

    tasks = build(parse(raw), "base", [load_concept(raw["concepts"][0])]).tasks.values()

    embedded = [t.parents["images"] for t in tasks if t.kind == "embed"]
    assert len(embedded) == len(set(embedded)) == 2  # the base's images, and those after esd
    assert sum(t.kind == "score" for t in tasks) == 6


def all_pairs(kernel: Any, f: Tensor, g: Tensor, *, pairs: bool) -> float:
    """The estimator, term by term."""
    k = [[float(kernel(x, y)) for y in g] for x in f], [[float(kernel(x, y)) for y in f] for x in f]
    k_gg = [[float(kernel(x, y)) for y in g] for x in g]
    k_fg, k_ff = k
    n, m = len(f), len(g)
    own = sum(k_ff[i][j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(k_gg[i][j] for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    cross = [k_fg[i][j] for i in range(n) for j in range(m) if not (pairs and i == j)]
    return own + other - 2 * sum(cross) / len(cross)


def poly(x: Tensor, y: Tensor) -> Tensor:
    return (torch.dot(x, y) / len(x) + 1) ** 3


def gauss(x: Tensor, y: Tensor) -> Tensor:
    return 1000 * torch.exp(-(x - y).square().sum() / 200)


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize(("method", "kernel"), [(KID, poly), (CMMD, gauss)])
def test_kid_and_cmmd_are_their_sums_written_out(method: Any, kernel: Any, pairs: bool) -> None:
    f, g = (torch.nn.functional.normalize(x, dim=1) for x in samples(12, 12, 6))
    expected = all_pairs(kernel, f.double(), g.double(), pairs=pairs)

    assert method(pairs=pairs).distance(f, g, rng=RNG)["value"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(10, 64), (200, 64), (1500, 192)])
def test_kid_without_pairs_equals_torchmetrics(n: int, d: int) -> None:
    f, g = samples(n, n, d)

    expected = float(poly_mmd(g.double(), f.double()))

    assert KID(pairs=False).distance(f, g, rng=RNG)["value"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("method", [KID, CMMD])
def test_equal_images_are_at_distance_zero_only_if_their_pairs_are_left_out(method: Any) -> None:
    f, _ = samples(30, 30, 8)

    assert method().distance(f, f, rng=RNG) == {"value": 0.0, "ci_low": 0.0, "ci_high": 0.0}
    assert method(pairs=False).distance(f, f, rng=RNG)["value"] < 0


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("method", [KID, CMMD])
def test_kid_and_cmmd_have_no_bias(method: Any, pairs: bool) -> None:
    """Two samples of one distribution are at 0 on average; the published V-statistic of CMMD is not."""
    found, biased = [], []
    for seed in range(200):
        f = torch.randn(20, 2, 8, generator=Generator().manual_seed(seed)).double()
        f = f / f.norm(dim=-1, keepdim=True)
        found.append(method(pairs=pairs).distance(f[:, 0], f[:, 1], rng=RNG)["value"])
        k = torch.exp(-torch.cdist(f.flatten(0, 1), f.flatten(0, 1)).square() / 200).view(20, 2, 20, 2)
        biased.append(1000 * float(k[:, 0, :, 0].mean() + k[:, 1, :, 1].mean() - 2 * k[:, 0, :, 1].mean()))

    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(len(found))
    assert np.mean(biased) > 10 * np.std(biased) / math.sqrt(len(biased))


def test_pairs_of_alike_images_give_no_bias_either() -> None:
    """With one seed for both, images i are alike: only the estimator for pairs stays at 0."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(200):
        common, a, b = torch.randn(3, 20, 8, generator=Generator().manual_seed(seed))
        for pairs, values in found.items():
            values.append(KID(pairs=pairs).distance(common + 0.3 * a, common + 0.3 * b, rng=RNG)["value"])
    error = {pairs: np.std(v) / math.sqrt(len(v)) for pairs, v in found.items()}

    assert abs(np.mean(found[True])) < 4 * error[True]
    assert np.mean(found[False]) < -10 * error[False]


@pytest.mark.parametrize("pairs", [True, False])
def test_the_interval_is_the_jackknifes(pairs: bool) -> None:
    """Leave each image, or each pair, out in turn and compute again."""
    f, g = samples(15, 15 if pairs else 11, 5)
    found = KID(pairs=pairs).distance(f, g, rng=RNG)

    def without(x: Tensor, i: int) -> Tensor:
        return torch.cat([x[:i], x[i + 1 :]])

    def again(f: Tensor, g: Tensor) -> float:
        return KID(pairs=pairs).distance(f, g, rng=RNG)["value"]

    if pairs:
        groups = [[again(without(f, i), without(g, i)) for i in range(15)]]
    else:
        groups = [[again(without(f, i), g) for i in range(15)], [again(f, without(g, i)) for i in range(11)]]
    variance = sum((len(v) - 1) * np.var(v) for v in groups)

    assert found["ci_high"] - found["value"] == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)
    assert found["value"] - found["ci_low"] == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_interval_covers_the_truth_at_least_nine_times_in_ten(shift: float) -> None:
    d, n, draws = 4, 40, 300
    # E (x.y/d + 1)^3 of independent Gaussians N(a, 1), N(b, 1): by the moments of s = x.y.
    truth = moment(shift, shift, d) + moment(0, 0, d) - 2 * moment(shift, 0, d)
    covered = 0
    for seed in range(draws):
        f, g = torch.randn(2, n, d, generator=Generator().manual_seed(seed))
        found = KID().distance(f + shift, g, rng=RNG)
        covered += found["ci_low"] <= truth <= found["ci_high"]

    assert covered >= 0.9 * draws


def moment(a: float, b: float, d: int) -> float:
    """E (s/d + 1)^3, s the sum of d products of N(a, 1) and N(b, 1): from the cumulants of a product."""
    mean, second = a * b, (a * a + 1) * (b * b + 1)
    third = (a**3 + 3 * a) * (b**3 + 3 * b)
    k1, k2 = d * mean, d * (second - mean**2)
    k3 = d * (third - 3 * mean * second + 2 * mean**3)
    m2, m3 = k2 + k1**2, k3 + 3 * k2 * k1 + k1**3
    return 1 + 3 * k1 / d + 3 * m2 / d**2 + m3 / d**3


def test_the_same_sets_give_the_same_numbers_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    f, g = samples(50, 50, 8)
    before = torch.get_rng_state()
    first = KID().distance(f, g, rng=Generator().manual_seed(1))
    monkeypatch.setattr(sets, "ROWS", 7)
    second = KID().distance(f, g, rng=Generator().manual_seed(2))

    assert second == pytest.approx(first, rel=1e-9)
    assert torch.equal(before, torch.get_rng_state())
    assert sets.diagonal(cubic, f, f).tolist() == pytest.approx(cubic(f, f).diagonal().tolist(), rel=1e-5)


@pytest.mark.parametrize("method", [FID, KID, CMMD])
def test_a_set_that_cannot_be_measured_is_refused(method: Any) -> None:
    f, g = samples(4, 4, 3)

    for few in (f[:1], f[:, :2]):
        with pytest.raises(ValueError, match="expected features"):
            method().distance(few, g, rng=RNG)
    with pytest.raises(ValueError, match="expected finite features"):
        method().distance(torch.full_like(f, math.nan), g, rng=RNG)
    two = method().distance(f[:2], g[:2], rng=RNG)
    assert math.isfinite(two["value"]) and math.isnan(two["ci_low"])


def test_identities_name_the_estimator_and_the_weights() -> None:
    methods = [FID(), KID(), KID(pairs=False), KID(embedder="mini:judge"), KID(embedder=TORCHVISION), CMMD()]
    methods += [FID(embedder=TORCHVISION), CMMD(sigma=5.0), CMMD(pairs=False), CMMD(embedder="mini:second")]

    assert len({m.identity() for m in methods}) == len(methods)
    assert "6726825d" in FID().identity()


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of torch's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    embedders.inception.cache_clear()
    yield folder
    embedders.inception.cache_clear()


def put(network: torch.nn.Module, checkpoints: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights as the file that an embedder reads, under the hash that they have."""
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    torch.save(network.state_dict(), checkpoints / "new")
    digest = hashlib.sha256((checkpoints / "new").read_bytes()).hexdigest()
    url = f"https://example.invalid/weights-{digest[:8]}.pth"
    monkeypatch.setitem(embedders.INCEPTIONS, name.partition(":")[2], url)
    return (checkpoints / "new").rename(checkpoints / url.rpartition("/")[2])


@pytest.fixture
def pictures() -> Tensor:
    return torch.randint(0, 256, (3, 3, 64, 48), generator=Generator().manual_seed(0)) / 255


@pytest.mark.slow
def test_inception_is_torchmetrics_on_the_same_weights(
    checkpoints: Path, pictures: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
    network = NoTrainInceptionV3("inception-v3-compat", ["2048"])
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(checkpoints.parent.parent))
    file = put(network, checkpoints, TORCH_FIDELITY, monkeypatch)
    before = torch.get_rng_state()
    ours = embedders.embed(TORCH_FIDELITY, pictures)
    assert torch.equal(before, torch.get_rng_state())

    metric = FrechetInceptionDistance(feature_extractor_weights_path=str(file), normalize=True)
    torch.testing.assert_close(ours, metric.inception((pictures * 255).byte()))
    square = T.resize((pictures * 255).byte(), [299, 299])
    plain = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(file))(square)[0]
    torch.testing.assert_close(embedders.embed(TORCH_FIDELITY, square / 255), plain, atol=1e-5, rtol=1e-4)
    assert ours.shape == (3, 2048) and ours.std() > 0


@pytest.mark.slow
def test_torchvisions_inception_is_torchvisions(
    checkpoints: Path, pictures: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng(devices=[]):
        network = inception_v3(init_weights=False, transform_input=True).eval()
    put(network, checkpoints, TORCHVISION, monkeypatch)
    ours = embedders.embed(TORCHVISION, pictures)

    network.fc = torch.nn.Identity()
    large = torch.nn.functional.interpolate(pictures, (299, 299), mode="bilinear", antialias=True)
    with torch.no_grad():
        theirs = network(T.normalize(large, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [TORCH_FIDELITY, TORCHVISION])
def test_missing_weights_are_named_and_not_downloaded(
    name: str, checkpoints: Path, pictures: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: object, **__: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    file = checkpoints / embedders.INCEPTIONS[name.partition(":")[2]].rpartition("/")[2]
    with pytest.raises(FileNotFoundError) as missing:
        embedders.embed(name, pictures)
    assert str(file) in str(missing.value) and "\n" not in str(missing.value)

    file.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"expected sha256 \w{8}… of .*: delete it and download"):
        embedders.embed(name, pictures)


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (math.sqrt, (4,))


def test_weights_with_code_in_them_are_refused(
    checkpoints: Path, pictures: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"x": Code()}, checkpoints / "new")
    digest = hashlib.sha256((checkpoints / "new").read_bytes()).hexdigest()
    (checkpoints / "new").rename(checkpoints / f"code-{digest[:8]}.pth")
    monkeypatch.setitem(embedders.INCEPTIONS, "torch-fidelity", f"https://example.invalid/code-{digest[:8]}.pth")

    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        embedders.embed(TORCH_FIDELITY, pictures)


def test_an_unknown_embedder_is_refused() -> None:
    for name in ("inception:", "inception:clean-fid", "judge", "clip:ViT-B-32"):
        with pytest.raises(ValueError, match="name an embedder"):
            embedders.embedder_identity(name)


def test_the_minis_embedder_gives_unit_vectors(pictures: Tensor) -> None:
    torch.testing.assert_close(embedders.embed("mini:judge", pictures).norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("method", [KID, CMMD])
def test_sets_of_different_sizes_hold_no_pairs_and_are_not_taken_for_such(method: Any) -> None:
    """One identity is one estimator: with pairs the number is another one."""
    f, g = samples(9, 7, 5)

    with pytest.raises(ValueError, match="expected pairs, got 9 and 7 images"):
        method().distance(f, g, rng=RNG)
    assert math.isfinite(method(pairs=False).distance(f, g, rng=RNG)["value"])

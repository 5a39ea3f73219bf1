"""Every family through one interface: our predictions and images are diffusers' own, and bad input is one line."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from huggingface_hub import errors as hub
from typer.testing import CliRunner

from attacks.component_swap import ComponentSwap
from benchmark.cli import app
from benchmark.config import config
from benchmark.diffusion import Model, denoising_loss, difference, sample
from benchmark.errors import ConfigError, DataError
from benchmark.mini import PIPELINES
from benchmark.model import bases as models
from benchmark.model import load
from benchmark.model.bases import Found, fingerprint, locate
from benchmark.model.generate import start_noise
from benchmark.types import Concept, Delta
from tests.pipelines import BETAS
from tests.runs import tiny_config, write_config

DRAWABLE = ("sd1", "sd21", "sdxl")
TEXTS = ["a cat", "dog! on a mat"]
runner = CliRunner()


@pytest.fixture(scope="module")
def bases(tiny_folders: dict[str, Path]) -> dict[str, Model]:
    return {name: load(tiny_folders[name]) for name in DRAWABLE}


def pipeline(folder: Path, prediction: str) -> Any:
    """diffusers' own, with DDIM as it is set for Stable Diffusion."""
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.scheduler = DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", DRAWABLE)
def test_an_image_is_the_diffusers_pipelines(bases: dict[str, Model], tiny_folders: dict[str, Path], name: str) -> None:
    """Same noise, same prompts, same guidance; v-prediction and both text encoders included."""
    model = bases[name]
    pipe = pipeline(tiny_folders[name], "v_prediction" if name == "sd21" else "epsilon")
    z_T = start_noise([5, 6], model.latent_shape)
    settings = {"num_inference_steps": 5, "guidance_scale": 3.0, "height": 8, "width": 8, "output_type": "pt"}
    theirs = pipe(TEXTS, latents=z_T, **settings).images
    text, null = model.encode_text(TEXTS), model.encode_text(["", ""])

    ours = model.decode(sample(model, z_T, text, null, steps=5, guidance=3.0)).detach()

    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert float(ours.std()) > 0.01


def test_sdxl_predicts_what_its_unet_does_with_the_pipelines_conditions(
    bases: dict[str, Model], tiny_folders: dict[str, Path]
) -> None:
    model, pipe = bases["sdxl"], pipeline(tiny_folders["sdxl"], "epsilon")
    z, t = start_noise([1, 2], model.latent_shape), torch.tensor([3, 800])
    h, _, p, _ = pipe.encode_prompt(TEXTS, device="cpu", do_classifier_free_guidance=False)
    sizes = torch.tensor([[8.0, 8, 0, 0, 8, 8]]).expand(2, -1)
    with torch.no_grad():
        theirs = pipe.unet(
            z, t, encoder_hidden_states=h, added_cond_kwargs={"text_embeds": p, "time_ids": sizes}
        ).sample
        ours = model.predict(z, t, model.encode_text(TEXTS))
        uncropped = model.predict(z, t, torch.cat([model.encode_text([text]) for text in TEXTS]))

    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(uncropped, theirs)  # texts can be stacked and indexed without knowing what they hold


def test_a_v_prediction_becomes_the_noise_it_stands_for(bases: dict[str, Model]) -> None:
    """eps = sqrt(ab) v + sqrt(1 - ab) z_t in float64, and v of the true noise has no loss."""
    model, t = bases["sd21"], torch.tensor([10, 900])
    z, text = start_noise([1, 2], model.latent_shape), model.encode_text(TEXTS)
    betas = torch.linspace(BETAS["beta_start"] ** 0.5, BETAS["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    ab = torch.cumprod(1 - betas, 0)[t].reshape(-1, 1, 1, 1)
    with torch.no_grad():
        v = model.unet(z, t, encoder_hidden_states=text).sample.double()
        ours = model.predict(z, t, text)

    torch.testing.assert_close(ours.double(), ab.sqrt() * v + (1 - ab).sqrt() * z.double(), atol=1e-5, rtol=1e-5)


def test_the_empty_text_of_sdxl_is_zeros_where_its_pipeline_says_so(
    bases: dict[str, Model], tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    other = edited(tiny_folders["sdxl"], tmp_path, "model_index.json", force_zeros_for_empty_prompt=False)

    assert not bases["sdxl"].encode_text([""]).any()
    assert bool(bases["sdxl"].encode_text(["a"]).any())
    assert bool(load(other).encode_text([""]).any())
    assert fingerprint(other) != fingerprint(tiny_folders["sdxl"])  # its images differ, so its results must


@pytest.mark.parametrize("name", DRAWABLE)
def test_words_encode_as_their_text(bases: dict[str, Model], name: str) -> None:
    """And gradients reach them, from the pooled embedding alone too."""
    model = bases[name]
    words = model.words(model.ids(["a cat", "dog"])).requires_grad_()

    encoded = model.encode_words(words)
    encoded[:, -1].square().sum().backward()

    torch.testing.assert_close(encoded, model.encode_text(["a cat", "dog"]))
    assert encoded.shape[1:] == model.text_shape
    assert words.shape[-1] == model.table.shape[1]
    assert words.grad is not None and bool(words.grad[:, 1:3].any())


@pytest.mark.parametrize("name", DRAWABLE)
def test_a_learned_word_is_a_word_of_every_text_encoder(bases: dict[str, Model], name: str) -> None:
    """A copied vector makes a synonym, which SDXL's pooled embedding must see as the text's end sees it."""
    model = bases[name]
    cat = model.words(model.ids(["c"]))[0, 1]
    size = len(model.tokenizer)

    taught = model.with_tokens({"<new>": cat})

    torch.testing.assert_close(taught.encode_text(["b <new> d"]), model.encode_text(["b c d"]))
    assert len(model.tokenizer) == size
    with pytest.raises(ValueError, match="expected a word vector of shape"):
        model.with_tokens({"<new>": cat[:-1]})


@pytest.mark.parametrize("name", DRAWABLE)
def test_a_delta_reaches_every_part_and_leaves_the_base(bases: dict[str, Model], name: str) -> None:
    model = bases[name]
    changed = model.clone()
    for part in changed.parts.values():
        for parameter in part.parameters():
            parameter.data.add_(0.01)
    whole = Delta(dense={k: t for part in model.parts for k, t in difference(changed, model, part=part).dense.items()})

    back = model.with_delta(whole)

    assert set(model.parts) >= {"unet", "vae", "text_encoder"}
    assert ("text_encoder_2" in model.parts) == (name == "sdxl")
    for part in model.parts:
        pairs = zip(back.parts[part].parameters(), changed.parts[part].parameters(), strict=True)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)
        assert not any(p.requires_grad for p in model.parts[part].parameters())


def test_swapping_the_text_encoder_swaps_both(bases: dict[str, Model], concept: Concept) -> None:
    defended = bases["sdxl"].clone()
    for part in defended.parts.values():
        for parameter in part.parameters():
            parameter.data.add_(0.01)
    arguments = {"budgets": [1], "rng": torch.Generator(), "report": lambda **_: None}

    (snapshot,) = ComponentSwap(part="text_encoder").finetune(defended, bases["sdxl"], concept, {}, **arguments)

    back = defended.with_delta(snapshot.delta)
    for name, part in back.parts.items():
        alike = zip(part.parameters(), bases["sdxl"].parts[name].parameters(), strict=True)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in alike) == name.startswith("text_encoder"), name


@pytest.mark.parametrize("name", DRAWABLE)
def test_half_precision_predicts_nearly_the_same_and_trains_in_full(bases: dict[str, Model], name: str) -> None:
    full, half = bases[name], replace(bases[name].clone(), precision="float16")
    half.unet.requires_grad_(True)
    z, t, text = start_noise([1, 2], full.latent_shape), torch.tensor([10, 500]), full.encode_text(TEXTS)
    with torch.no_grad():
        a, b = full.predict(z, t, text), half.predict(z, t, text)
    loss, reference = (denoising_loss(m, z, text, rng=torch.Generator().manual_seed(0)) for m in (half, full))
    loss.backward()

    assert b.dtype == torch.float32
    assert 0 < float((a - b).norm() / a.norm()) < 0.05
    assert float(loss.detach()) == pytest.approx(float(reference), abs=1e-6)  # in half it would be off by 1e-4
    assert all(p.dtype == torch.float32 for part in half.parts.values() for p in part.parameters())


# Finding a model.


def edited(folder: Path, root: Path, file: str, **values: Any) -> Path:
    """A copy of a folder with changed values in one of its JSON files."""
    copy = root / "copy"
    shutil.copytree(folder, copy)
    changed = json.loads((copy / file).read_text()) | values
    (copy / file).write_text(json.dumps(changed))
    return copy


def without_weights(folder: Path) -> None:
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()


def pickled(folder: Path) -> None:
    without_weights(folder)
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04")


def only_half(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    )


def cut_off(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def checker_only(folder: Path) -> None:
    for part in folder.iterdir():
        shutil.rmtree(part) if part.is_dir() else None
    (folder / "safety_checker").mkdir()


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def broken_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def inpainting(folder: Path) -> None:
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"in_channels": 9}))


def other_prediction(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "sample"}))


def zero_snr(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rescale_betas_zero_snr": True}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_weights, "expected safetensors weights in .*unet, got none"),
        (pickled, "got diffusion_pytorch_model.bin, pickled, which can run code when loaded"),
        (only_half, "got diffusion_pytorch_model.fp16.safetensors"),
        (cut_off, "the file is cut off"),
        (checker_only, "which lacks unet, vae, text_encoder, tokenizer, scheduler"),
        (no_index, "which lacks model_index.json"),
        (broken_index, "expected JSON in"),
        (inpainting, "got one of 9 channels in and 4 out"),
        (other_prediction, "got prediction_type 'sample'"),
        (zero_snr, "got a terminal SNR of zero"),
    ],
)
def test_a_folder_that_no_run_could_use_is_refused(
    tiny_folder: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    """In one line and before torch loads anything: `locate` reads headers."""
    shutil.copytree(tiny_folder, tmp_path / "model")
    spoil(tmp_path / "model")

    with pytest.raises(DataError, match=message) as refused:
        locate(str(tmp_path / "model"))

    assert "\n" not in str(refused.value)


def test_a_variant_beside_the_weights_changes_no_hash(tiny_folder: Path, tmp_path: Path) -> None:
    """A local copy of a hub's page has fp16 and non_ema files that no run reads."""
    shutil.copytree(tiny_folder, tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    for variant in ("fp16", "non_ema"):
        shutil.copy(weights, weights.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))

    assert fingerprint(tmp_path / "model") == fingerprint(tiny_folder)


def test_a_cached_file_is_hashed_by_its_name_as_by_its_bytes(tiny_folder: Path, tmp_path: Path) -> None:
    """The hub's cache names a large file by its SHA-256, so that a plan for gigabytes needs no minute."""
    import hashlib

    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "blobs").mkdir()
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    blob = tmp_path / "blobs" / hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.rename(blob)
    weights.symlink_to(blob)

    assert fingerprint(tmp_path / "model") == fingerprint(tiny_folder)
    blob.write_bytes(b"")
    assert fingerprint(tmp_path / "model") == fingerprint(tiny_folder)


class Hub:
    """`snapshot_download` that knows one model, at one revision, and whether it is in the cache."""

    def __init__(self, folder: Path, *, cached: bool = False, error: Exception | None = None) -> None:
        self.folder, self.cached, self.error, self.calls = folder, cached, error, list[dict[str, Any]]()

    def __call__(self, place: str, **options: Any) -> str:
        self.calls.append({"place": place, **options})
        if options["local_files_only"] and not self.cached:
            raise hub.LocalEntryNotFoundError("not in the cache")
        if self.error:
            raise self.error
        return str(self.folder)


def http(kind: type[Exception]) -> Exception:
    """One of the hub client's own exceptions."""
    return kind("text\nmore", response=SimpleNamespace(headers={}, request=None))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            http(hub.GatedRepoError),
            "got a gated model: ask for it at https://huggingface.co/some/model, then log in with `hf auth login`",
        ),
        (http(hub.RevisionNotFoundError), "expected a branch, tag or commit of some/model, got 'old'"),
        (http(hub.RepositoryNotFoundError), "got 'some/model', which is none"),
        (hub.LocalEntryNotFoundError("offline"), "in the cache or a connection to the hub, got neither"),
        (OSError(28, "No space left on device"), "expected room for some/model on the disk"),
        (http(hub.HfHubHTTPError), "got HfHubHTTPError: text; try again"),
    ],
)
def test_each_no_of_the_hub_is_one_line_and_exit_code_2(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    """Through the command, before a model is loaded; the store stays empty."""
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub(tiny_folder, error=error))
    monkeypatch.setattr(models, "load", None)
    source = write_config(tmp_path, tiny_folder, model={"source": "some/model", "revision": "old"})

    result = runner.invoke(app, ["run", str(source), "--store", str(tmp_path / "store"), "--out", str(tmp_path / "o")])

    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_a_plan_for_a_model_that_is_not_here_asks_the_cache_alone(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, has a base of its own, and takes no folder; what needs the weights' hash refuses."""
    asked = Hub(tiny_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    source = str(write_config(tmp_path / "config", tiny_folder, model="sd14"))
    at = ["--store", str(tmp_path / "store")]

    shown, facts = runner.invoke(app, ["plan", source, *at]), runner.invoke(app, ["plan", source, *at, "--json"])
    dry = runner.invoke(app, ["run", source, *at, "--out", str(tmp_path / "out"), "--dry-run"])
    board = runner.invoke(app, ["board", source, *at, "--out", str(tmp_path / "out")])

    assert (shown.exit_code, dry.exit_code, board.exit_code) == (0, 0, 2)
    place = "unresolved:CompVis/stable-diffusion-v1-4@133a221b8aa7292a167afc5127cb63fb5005638b"
    assert f"{place}: no weights here" in shown.stdout
    assert json.loads(facts.stdout)["model"] == place
    assert json.loads(facts.stdout)["left"] == json.loads(facts.stdout)["tasks"] > 0
    assert "expected the weights of sd14 on this machine" in board.stderr
    assert all(call["local_files_only"] for call in asked.calls)
    assert {p.name for p in tmp_path.iterdir()} == {"config"}


def test_a_run_fetches_what_it_needs_at_the_pinned_revision(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Hub(tiny_folders["sdxl"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)

    found = models.find("some/model@v1.0", "download")

    assert found == Found(fingerprint(tiny_folders["sdxl"]), tiny_folders["sdxl"])
    wanted = asked.calls[-1]
    assert (wanted["place"], wanted["revision"]) == ("some/model", "v1.0")
    assert "text_encoder_2/*.safetensors" in wanted["allow_patterns"]
    assert not any("bin" in pattern for pattern in wanted["allow_patterns"])
    assert asked.calls[-2]["allow_patterns"] == ["model_index.json"]


def test_what_is_in_the_cache_is_not_asked_for_again(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Hub(tiny_folder, cached=True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)

    assert locate("some/model") == tiny_folder
    assert all(call["local_files_only"] for call in asked.calls)


@pytest.fixture
def video_folder(tmp_path: Path) -> Path:
    """A model's folder whose pipeline no family draws with."""
    folder = tmp_path / "video"
    folder.mkdir()
    index = {"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_no_weights_are_fetched_of_a_model_that_cannot_be_drawn_with(
    video_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Hub(video_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)

    with pytest.raises(DataError, match="got WanPipeline"):
        locate("some/model")

    assert all(call["allow_patterns"] == ["model_index.json"] for call in asked.calls)


def test_a_model_of_no_family_is_refused_in_one_line(video_folder: Path, tmp_path: Path) -> None:
    source = write_config(tmp_path, video_folder)

    for command in ("plan", "run"):
        result = runner.invoke(app, [command, str(source), "--store", str(tmp_path / "store")])

        assert result.exit_code == 2
        assert len(result.stderr.strip().splitlines()) == 1
        assert "expected a model of FluxPipeline, " in result.stderr
        assert "got WanPipeline" in result.stderr


def test_a_pinned_model_can_be_written_as_a_mapping(tmp_path: Path) -> None:
    values = tiny_config(tmp_path, Path("model"))

    pinned = config.parse(values | {"model": {"source": "some/model", "revision": "abc"}, "precision": "float16"})

    assert pinned.raw.model == "some/model@abc"
    for wrong in ({"source": "some/model"}, {"source": "some/model", "revision": 12}, {"id": "x", "revision": "y"}):
        with pytest.raises(ConfigError, match=r"expected \{source: NAME, revision: TEXT\}"):
            config.parse(values | {"model": wrong})


def test_a_revision_overrides_a_presets_and_no_folder_has_one(tiny_folder: Path) -> None:
    assert models.parse("sd14@other") == ("CompVis/stable-diffusion-v1-4", "other")
    assert models.parse("some/model") == ("some/model", None)
    for name in set(models.PRESETS) - set(PIPELINES):
        assert len(models.parse(name)[1] or "") == 40, name
    with pytest.raises(DataError, match="expected no revision of the folder"):
        models.parse(f"{tiny_folder}@v1")
    with pytest.raises(DataError, match="did you mean 'sdxl'"):
        models.find("sdx", "optional")

"""Training of the director: next-token prediction over packed scenes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from transformers import LlamaConfig
from transformers.utils.logging import disable_progress_bar

from modules.checkpoint import fingerprint, load_frozen, read_export, save_export
from modules.errors import UserError
from modules.llm.config import ArchitectureConfig, DepthHeadConfig, LLMConfig
from modules.llm.data import Collate, Encode, next_token_targets, place_pose_tokens
from modules.llm.depth import DepthHead, save_depth_head, slots_of
from modules.llm.director import Director
from modules.llm.network import (
    hidden_states,
    init_from_codebooks,
    network_of,
    next_token_losses,
    pretrained_network,
    random_network,
)
from modules.llm.scenes import scene_from_plan
from modules.llm.tokenizer import load_tokenizer, tokenizer_from_json, train_tokenizer
from modules.llm.tokens import TEXT, CodeShape, SceneGrammar, SceneVocabulary, add_scene_tokens
from modules.optim import OptimConfig, build_optimizer
from modules.pose.draw import pose_strip
from modules.pose.scene import Clip
from modules.zero import is_sharded, sharded_building

NUM_SAMPLES = 4  # captions of the validation split whose scenes are drawn
PAPER_CODES = CodeShape(num_quantizers=6, codebook_size=512, max_keys=20)  # to tell sizes before there is an export


@dataclass
class Step:
    """Every supervised position of a batch, (N,) each."""

    losses: Tensor
    hits: Tensor  # bool: the likeliest token is the right one
    kinds: Tensor  # int64, see modules/llm/tokens.py
    share: float  # positions of this rank, over the mean of all ranks: the mean over ranks is that over positions


class KindScores(Metric):
    """Mean loss and accuracy of each kind of token, over all batches and ranks."""

    sums: Tensor  # (3, kinds): losses, hits, count

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self.add_state("sums", torch.zeros(3, len(names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, step: Step) -> None:
        values = torch.stack([step.losses.detach().double(), step.hits.double(), torch.ones_like(step.losses).double()])
        self.sums += torch.zeros_like(self.sums).index_add_(1, step.kinds, values)

    def compute(self) -> dict[str, Tensor]:
        """{loss, accuracy} of what follows <scene>, and {loss_kind, accuracy_kind} of each kind that occurred."""
        scene = self.sums[:, TEXT + 1 :].sum(1)
        total = scene[2].clamp(min=1)
        scores = {"loss": scene[0] / total, "accuracy": scene[1] / total}
        for number, name in enumerate(self.names):
            losses, hits, count = self.sums[:, number]
            if count > 0:
                scores |= {f"loss_{name}": losses / count, f"accuracy_{name}": hits / count}
        return {name: value.float() for name, value in scores.items()}


class LLMModule(L.LightningModule):
    """Cross-entropy of the next token over the whole vocabulary (the paper's section on the director)."""

    monitor = ("val/loss", "min")  # of the scene, without the text
    columns: tuple[str, ...] = ("pose",)

    def __init__(self, config: dict[str, Any] | LLMConfig, max_steps: int) -> None:
        super().__init__()
        self.config = config if isinstance(config, LLMConfig) else _from_plain(config)
        self.max_steps = max_steps
        self.save_hyperparameters({"config": dataclasses.asdict(self.config), "max_steps": max_steps})
        self.encode = Encode(max_people=self.config.max_people, start_jitter=self.config.start_jitter)
        self.collate = Collate(pack_length=self.config.pack_length)
        self.network: Any = None  # built when the tokenizer is known
        self.depth_head: DepthHead | None = None
        self._origin: dict[str, Any] = {}  # what the director is made for; plain data, kept in checkpoints
        self._architecture: dict[str, Any] | None = None  # of a checkpoint: the numbers of its network
        # In a list, so that the frozen network is no part of this module's weights.
        self._pose_tokenizer: list[Any] = []
        if torch.get_default_device().type == "meta":
            self._build_for_size()

    def setup_data(self, clips: Callable[[], Iterable[Clip]]) -> None:
        """Read the pose tokenizer's export, and train the text tokenizer on the captions where none is named."""
        name = self.config.tokenizer or self.config.pretrained
        content = None
        if name is None:
            content = train_tokenizer((clip.caption for clip in clips()), vocabulary_size=self.config.text_vocabulary)
        self._bind(self._read_origin(content))

    def _read_origin(self, tokenizer: str | None) -> dict[str, Any]:
        config = read_export(self.config.vqvae, "vqvae").config
        return {
            "codes": dataclasses.asdict(CodeShape.from_config(config)),
            "stride": config["stride"],
            "fps": config["fps"],
            "vqvae": {"path": self.config.vqvae, "sha256": fingerprint(self.config.vqvae)},
            "tokenizer": tokenizer,
        }

    def _bind(self, origin: dict[str, Any]) -> None:
        """Make the grammar, and tell the data functions of it."""
        self._origin = origin
        if origin["tokenizer"] is not None:
            self.tokenizer = tokenizer_from_json(origin["tokenizer"])
        else:
            self.tokenizer = load_tokenizer(self.config.tokenizer or self.config.pretrained or "")
        vocabulary = add_scene_tokens(self.tokenizer, CodeShape(**origin["codes"]))
        self.grammar = SceneGrammar(
            tokenizer=self.tokenizer, vocabulary=vocabulary, max_people=self.config.max_people
        )
        self.kinds = torch.from_numpy(vocabulary.kind_table)
        self.val_scores = KindScores(vocabulary.kind_names)
        self.encode.bind(stride=origin["stride"], max_keys=vocabulary.codes.max_keys)

    def setup(self, stage: str) -> None:
        if not self._origin and (self.config.tokenizer or self.config.pretrained):
            self._bind(self._read_origin(None))
        if self._origin and self.network is None:
            strategy = self._trainer.strategy if self._trainer is not None else None
            half = is_sharded(strategy) and strategy.precision_plugin.precision.startswith("bf16")  # type: ignore[union-attr]
            with sharded_building(strategy):
                self._adopt(self._build(torch.bfloat16 if half else torch.float32))

    def _build_for_size(self) -> None:
        """A network without a tokenizer, of which only the sizes are asked."""
        try:
            codes = CodeShape.from_config(read_export(self.config.vqvae, "vqvae").config)
        except UserError:
            codes = PAPER_CODES
        vocabulary = SceneVocabulary(self.config.text_vocabulary, codes)
        self.network = random_network(architecture=self.config.architecture, vocabulary=vocabulary, bos=None)
        self._add_depth_head(codes)

    def _add_depth_head(self, codes: CodeShape) -> None:
        if self.config.depth_head.num_layers:
            width = self.network.config.hidden_size
            self.depth_head = DepthHead(self.config.depth_head, hidden_size=width, codes=codes)

    def _build(self, dtype: torch.dtype = torch.float32) -> Any:
        """The network at the start of a run, or that of a checkpoint, whose weights are still to be read."""
        vocabulary = self.grammar.vocabulary
        if self._architecture is not None:
            return network_of(LlamaConfig.from_dict(self._architecture))
        if self.config.pretrained is not None:
            network = pretrained_network(self.config.pretrained, vocabulary, dtype)
        else:
            network = random_network(
                architecture=self.config.architecture, vocabulary=vocabulary, bos=self.tokenizer.bos_token_id
            )
        if self.config.embedding_init == "codebook":
            pose_tokenizer: Any = load_frozen(self.config.vqvae, "vqvae")
            codebooks = pose_tokenizer.quantizer.codebooks
            init_from_codebooks(network, vocabulary, codebooks)
        return network

    def _adopt(self, network: Any) -> None:
        if self.config.gradient_checkpointing:
            network.gradient_checkpointing_enable({"use_reentrant": False})
        self.network = network.train()
        self._add_depth_head(self.grammar.vocabulary.codes)
        self.collate.bind(
            grammar=self.grammar, context=network.config.max_position_embeddings, depth_head=self.depth_head is not None
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["origin"] = copy.deepcopy(self._origin)
        checkpoint["architecture"] = self.network.config.to_diff_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not self._origin:
            self._bind(checkpoint["origin"])
        self._architecture = checkpoint["architecture"]

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """The weights of a checkpoint, after `on_load_checkpoint`."""
        if self.network is None:
            self._adopt(self._build())
        return super().load_state_dict(state_dict, strict, assign)

    def on_fit_start(self) -> None:
        self._pose_tokenizer = [load_frozen(self.config.vqvae, "vqvae").to(self.device)]

    @torch.no_grad()
    def _encode_poses(self, batch: dict[str, Any]) -> Tensor:
        """Codes (R, K, Q) of the people of a batch, in the precision in which everybody else encodes poses."""
        with torch.autocast(self.device.type, enabled=False):
            return self._pose_tokenizer[0].encode(batch["poses"], batch["visibility"], batch["key_mask"])

    def model_step(self, batch: dict[str, Any]) -> Step:
        """Tokenise the poses, and predict every next token."""
        codes = self._encode_poses(batch)
        input_ids = place_pose_tokens(batch, codes, self.grammar)
        places, targets = next_token_targets(input_ids, batch["sample_ids"], self.grammar, self.config.loss_on)
        kinds = self.kinds.to(targets.device)
        if self.depth_head is None:
            counts = self._over_ranks(len(targets))
            states = hidden_states(self.network, input_ids, batch["position_ids"], batch["sample_ids"])
            losses, hits = self._next_tokens(states.flatten(0, 1)[places], targets, max(counts))
            return Step(losses, hits, kinds[targets], _share(len(targets), counts))
        slots = slots_of(input_ids, batch["pose_index"], codes, self.grammar.vocabulary)  # (B, L, Q)
        states = hidden_states(self.network, slots, batch["position_ids"], batch["sample_ids"]).flatten(0, 1)
        posed = targets >= self.grammar.vocabulary.pose_start
        following = slots.flatten(0, 1)[places[posed] + 1]  # (N, Q) ids
        counts = self._over_ranks(len(targets) + int(posed.sum()) * (following.shape[1] - 1))
        losses, hits = self._next_tokens(states[places[~posed]], targets[~posed], max(counts))
        deep, deep_hits = self.depth_head.losses(states[places[posed]], self.grammar.vocabulary.codes_of(following))
        losses, hits = torch.cat([losses, deep.flatten()]), torch.cat([hits, deep_hits.flatten()])
        kinds = torch.cat([kinds[targets[~posed]], kinds[following.flatten()]])
        return Step(losses, hits, kinds, _share(len(losses), counts))

    def _next_tokens(self, states: Tensor, targets: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Losses and hits of states (N, D); `most`: the largest N of all ranks, which call the head equally often."""
        num_parts = max(-(-most // self.config.head_chunk), 1)
        return next_token_losses(self.network.lm_head, states, targets, num_parts)

    def _over_ranks(self, number: int) -> list[int]:
        if self._trainer is None or self._trainer.world_size == 1:
            return [number]
        numbers = [torch.zeros((), dtype=torch.int64, device=self.device) for _ in range(self._trainer.world_size)]
        torch.distributed.all_gather(numbers, torch.tensor(number, device=self.device))
        return torch.stack(numbers).tolist()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        step = self.model_step(batch)
        loss = step.losses.mean() * step.share
        scores = KindScores(self.val_scores.names).to(loss.device)
        scores.update(step)
        self.log("train/loss", loss, batch_size=len(step.losses), sync_dist=True)
        self.log_dict({f"train/{name}": value for name, value in scores.compute().items() if name != "loss"})
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.val_scores.update(self.model_step(batch))

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.val_scores.compute().items()})
        self.val_scores.reset()

    def configure_optimizers(self) -> Any:
        return build_optimizer(
            self.named_parameters(), self.config.optim, self.max_steps, lambda name: ".layers." in name
        )

    def director(self) -> Director:
        """This network as it is now, to plan scenes with."""
        return Director(
            network=self.network,
            grammar=self.grammar,
            stride=self._origin["stride"],
            fps=self._origin["fps"],
            vqvae_sha256=self._origin["vqvae"]["sha256"],
            depth_head=self.depth_head,
        )

    @torch.no_grad()
    def sample_images(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Scenes written for the first captions of a batch, each above the true one (through the pose tokenizer)."""
        director, vqvae = self.director(), self._pose_tokenizer[0]
        captions = batch["captions"][:NUM_SAMPLES]
        codes = self._encode_poses(batch)
        ids = place_pose_tokens(batch, codes, self.grammar)[..., None]  # (B, L, 1), with a depth head (B, L, Q)
        if self.depth_head is not None:
            ids = slots_of(ids[..., 0], batch["pose_index"], codes, self.grammar.vocabulary)
        images = {}
        for number, plan in enumerate(director.plan(captions)):
            own = ids[batch["sample_ids"] == number].flatten()
            truth = self.grammar.parse(own[own >= 0].tolist())
            width, height = batch["canvases"][number].tolist()
            scenes = [
                scene_from_plan(p, vqvae, width=width, height=height, fps=director.fps, stride=director.stride)
                for p in (plan, truth)
            ]
            images[f"scene{number}"] = _stack([pose_strip(scene) for scene in scenes])
        return images

    def export(self, directory: Path, info: dict[str, Any]) -> None:
        """A plain Hugging Face Llama with its tokenizer, and what the director needs to know beside them."""

        def write(folder: Path) -> None:
            disable_progress_bar()  # one shard is no progress to watch
            self.network.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            if self.depth_head is not None:
                save_depth_head(self.depth_head, folder)

        config = {
            "codes": self._origin["codes"],
            "stride": self._origin["stride"],
            "fps": self._origin["fps"],
            "vqvae": self._origin["vqvae"],
            "max_people": self.config.max_people,
            "depth_head": dataclasses.asdict(self.config.depth_head),
        }
        save_export(directory, stage="llm", config=config, state=None, info=info, extra=write)


def _share(count: int, counts: list[int]) -> float:
    return count * len(counts) / max(sum(counts), 1)


def _stack(images: list[np.ndarray]) -> np.ndarray:
    """Pictures below each other, padded to the widest."""
    width = max(image.shape[1] for image in images)
    return np.concatenate([np.pad(image, [(0, 0), (0, width - image.shape[1]), (0, 0)]) for image in images])


def _from_plain(values: dict[str, Any]) -> LLMConfig:
    values = copy.deepcopy(values)
    parts: dict[str, Any] = {"architecture": ArchitectureConfig, "depth_head": DepthHeadConfig, "optim": OptimConfig}
    return LLMConfig(**{name: build(**values.pop(name, {})) for name, build in parts.items()}, **values)

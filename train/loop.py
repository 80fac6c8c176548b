"""The training loop: read, predict, learn, report, look at held-out text, save; and go on from there.

Each pass of the loop is one optimizer step. What happens in it is a function of the step number: the order gives its
blocks, the step is part of the dropout key, the schedule its learning rate. So there is no hidden state to lose: a run
that stops and resumes computes, bit for bit on a CPU, what it would have computed without stopping.

Nothing in a step waits for the device. Losses and flags stay there as scalars and are read when a line is reported.
"""

import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pixelcore.accounting import num_parameters
from pixelcore.checkpoint import write_checkpoint
from pixelcore.config import DecoderConfig
from pixelcore.stored import Stored
from train.config import TaskSettings
from train.distributed import gradients_stay_local
from train.job import Job
from train.optimizer import gather
from train.report import Reporter
from train.schedule import learning_rate_factor
from train.sizing import peak_flops
from train.task_end import test_figures

_log = logging.getLogger(__name__)


class TrainingStoppedError(RuntimeError):
    """The run cannot usefully go on; its checkpoints stand."""


class Stopped(Exception):
    """A signal ended the run after it was saved: not an error, the user asked for it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def train(job: Job, stop_at: int | None = None) -> dict[str, Any]:
    """Train to the end, or to step stop_at, and return a summary. The run's folder holds the rest.

    Raises Stopped after saving on SIGINT or SIGTERM, TrainingStoppedError after run.max_skipped steps in a row without
    a finite gradient.
    """
    run = job.settings.run
    end = run.steps if stop_at is None else min(stop_at, run.steps)
    first_step, start = job.step, time.perf_counter()
    job.module.train()
    reporter = Reporter(
        job.folder,
        unit=job.objective.UNIT,
        curve=job.objective.CURVE,
        total=end * job.units_per_step,
        done=job.step * job.units_per_step,
        active=job.ranks.is_first,
        services=run.report,
    )
    with _signals() as caught, _profiler(job) as profiler, closing(job.batches), closing(reporter):
        meter = _Meter(job)
        if job.save_first:
            _save(job, meter)
        interrupted = False
        while job.step < end and not interrupted and not job.has_lost_patience:
            interrupted = not _one_step(job, reporter, meter, caught)
            if profiler is not None:
                profiler.step()
            if not interrupted:
                job.step += 1
                _after_step(job, reporter, meter)
                if job.ranks.world == 1 or job.step % run.log_every == 0:  # ranks agree where they wait anyway
                    interrupted = job.ranks.any(bool(caught))
            if interrupted or job.step == end or job.has_lost_patience:
                _save(job, meter)
        if interrupted:
            raise Stopped(caught[0] if caught else signal.SIGTERM)
    finished = job.step >= run.steps or job.has_lost_patience
    if job.has_lost_patience:
        _log.info("stopped at step %d: %d times in a row nothing better was found", job.step, job.stale)
    at_end = test_figures(job) if finished and isinstance(job.settings, TaskSettings) else {}
    if job.ranks.is_first:
        job.folder.mark(finished=finished, **at_end)
    reporter.draw()
    return _summary(job, meter, finished, first_step, time.perf_counter() - start) | at_end


def _one_step(job: Job, reporter: Reporter, meter: "_Meter", caught: list[int]) -> bool:
    """One optimizer step. False if a signal came in its midst: the step then never happened."""
    settings, ranks, objective = job.settings, job.ranks, job.objective
    # gradients are averaged over the ranks, losses are sums over the step: hence the number of ranks
    num_targets = job.batches.num_targets(job.step)
    scale = torch.full((), ranks.world / num_targets, device=ranks.device)
    dropout_seed = torch.tensor([settings.run.seed, job.step], device=ranks.device)
    units = settings.run.micro_batch_blocks * objective.block_units(settings) * ranks.world  # side by side
    rounds = None if job.opponent is None else job.opponent.prepare(job.step)
    for index in range(job.batches.per_rank):
        batch = job.batches.micro_batch(job.step, index, ranks.device) if rounds is None else rounds[index]
        with gradients_stay_local(job.module, is_last=index == job.batches.per_rank - 1):
            loss = objective.loss(job.module, batch, scale, dropout_seed)
            loss.total.backward()
        meter.add(loss.reported, loss.balance)
        reporter.advance(min(units, job.units_per_step - index * units))  # the last ones may not be full
        if caught and ranks.world == 1 and index < job.batches.per_rank - 1:
            job.model.zero_grad(set_to_none=True)
            meter.drop_step()
            return False
    rate = settings.optimizer.learning_rate * learning_rate_factor(settings.schedule, job.step, settings.run.steps)
    meter.end_step(_update(job, rate), rate, num_targets)
    return True


def _update(job: Job, rate: float) -> Tensor:
    """Every parameter by its gradient, the opponent's last; the norm of the model's gradient."""
    opponent = job.opponent
    if opponent is None:
        return job.optimizer.step(rate).grad_norm
    if opponent.lets_move(job.step):
        norm = job.optimizer.step(rate).grad_norm
    else:
        job.model.zero_grad(set_to_none=True)
        norm = torch.zeros(())
    opponent.learn(job.step)
    return norm


def _after_step(job: Job, reporter: Reporter, meter: "_Meter") -> None:
    """What is due after a step: a report, held-out loss and samples, a checkpoint."""
    run, eval_config = job.settings.run, job.settings.eval
    is_last = job.step == run.steps
    if job.step % run.log_every == 0 or is_last:
        reporter.metrics(job.step, meter.report())
        optimizers = [job.optimizer] if job.opponent is None else [job.optimizer, job.opponent.optimizer]
        if any(optimizer.skipped_in_a_row.item() >= run.max_skipped for optimizer in optimizers):
            raise TrainingStoppedError(
                f"stopped at step {job.step}: {run.max_skipped} steps in a row had no finite gradient; the newest "
                f"checkpoint in {job.folder.path} is from before: lower optimizer.learning_rate and start from it"
            )
    improved = False
    if job.step % eval_config.every == 0 or is_last:
        improved = _evaluate(job, reporter, meter)
        meter.restart_clock()
    if job.step % run.save_every == 0 or improved:
        _save(job, meter, best=improved)
        reporter.draw()
        meter.restart_clock()


def _evaluate(job: Job, reporter: Reporter, meter: "_Meter") -> bool:
    """Report the loss on held-out text and what the model writes. True if the run selects on it and it is the best."""
    values = job.objective.evaluate(job.module, job.held_out, job.ranks)
    if job.module is job.model and job.ranks.world == 1:
        job.model.eval()
        values |= job.objective.show(job.model, job.settings, job.corpus, job.held_out, reporter, job.step)
        job.model.train()
    meter.valid = values
    reporter.metrics(job.step, {f"valid_{name}": value for name, value in values.items()})
    reporter.say(f"step {job.step}: {job.objective.say(values)}")
    select = job.settings.eval.select
    if not select:
        return False
    value, best = values[select], job.ranks.agree_float(_best_value(job))
    # of all figures only a loss is better where it is smaller
    improved = math.isfinite(value) and (math.isnan(best) or (value < best if select == "loss" else value > best))
    job.stale = 0 if improved else job.stale + 1
    return improved


def _best_value(job: Job) -> float:
    """NaN before there is one."""
    if not job.ranks.is_first:
        return 0.0
    value = job.folder.read_marks().get("best_value")
    return math.nan if value is None else value


def _save(job: Job, meter: "_Meter", best: bool = False) -> None:
    """Write a checkpoint and name it in run.json. Every rank takes part; the first one writes."""
    frozen = {name for name, parameter in job.model.named_parameters() if not parameter.requires_grad and job.base}
    weights = {name: gather(tensor) for name, tensor in job.model.state_dict().items() if name not in frozen}
    optimizer, state, others = job.optimizer.gather(), meter.state(), {}
    if job.settings.eval.select:
        state["stale"] = torch.tensor(job.stale)
    if job.opponent is not None:
        state |= job.opponent.state()
        others = job.opponent.files()
    if job.ranks.is_first:
        path = job.folder.checkpoint(job.step)
        if not path.exists():  # an evaluation may have saved this step already
            stored = Stored(
                path=path,
                origin="checkpoint",
                name=job.settings.run.name or job.folder.path.name,
                step=job.step,
                config=job.settings.model,
                weights=weights,
                tokenizer=job.corpus.belongings.tokenizer,
                renderer=job.corpus.belongings.renderer,
                task=job.corpus.belongings.task,
                optimizer=optimizer,
            )
            write_checkpoint(path, stored, state=state, manifest=job.manifest(), base=job.base, others=others)
        chosen = meter.valid.get(job.settings.eval.select)
        changes: dict[str, Any] = {"best": path.name, "best_value": chosen} if best else {}
        job.folder.mark(newest=path.name, **changes)
        job.folder.prune(job.settings.run.keep_last)
    job.ranks.wait()


class _Meter:
    """Sums since the last report, on the device, and the clock. Its sums are part of a checkpoint, so that a resumed
    run reports what an uninterrupted one would."""

    def __init__(self, job: Job) -> None:
        self.job = job
        # scaled sums of the reported loss and the balance loss over this rank's share, and the steps they are of
        self.sums = torch.zeros(3, dtype=torch.float64, device=job.ranks.device)
        self.in_step = torch.zeros(2, dtype=torch.float64, device=job.ranks.device)
        if "meter" in job.state:
            self.sums += job.state["meter"].to(job.ranks.device)
            # the checkpoint holds the sum over all ranks, free of their number (_one_step scales by it)
            self.sums[:2] *= job.ranks.world if job.ranks.is_first else 0
        self.norm, self.rate = torch.zeros(()), 0.0
        self.valid: dict[str, float] = {}
        self.last_loss: float | None = None
        self.units_per_second: float | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        self.clock, self.steps_on_clock, self.targets_on_clock = time.perf_counter(), 0, 0

    def add(self, reported: Tensor, balance: Tensor) -> None:
        self.in_step += torch.stack((reported, balance)).detach()

    def drop_step(self) -> None:
        """Forget an unfinished step."""
        self.in_step.zero_()

    def end_step(self, norm: Tensor, rate: float, num_targets: int) -> None:
        self.sums[:2] += self.in_step
        self.sums[2] += 1
        self.in_step.zero_()
        self.norm, self.rate = norm, rate
        self.steps_on_clock += 1
        self.targets_on_clock += num_targets

    def report(self) -> dict[str, Any]:
        """The means since the last report. Every rank must call it."""
        job = self.job
        total = self._over_ranks()
        loss, balance = (total[:2] / total[2] / job.ranks.world).tolist()
        self.sums.zero_()
        units, unit = self.steps_on_clock * job.units_per_step, job.objective.UNIT
        seconds = time.perf_counter() - self.clock
        steps, targets = self.steps_on_clock, self.targets_on_clock
        self.restart_clock()
        self.last_loss = loss
        self.units_per_second = units / seconds if units else None
        values = {
            "loss": loss,
            "learning_rate": self.rate,
            "grad_norm": self.norm.item(),
            "skipped": int(job.optimizer.skipped.item()),
            unit: job.step * job.units_per_step,
            f"{unit}_per_second": None if self.units_per_second is None else round(self.units_per_second, 1),
            # what was predicted, counted one by one: a row may have few patches, a block a few ends of documents
            "targets_per_second": round(targets / seconds, 1) if units else None,
            "seconds": round(seconds, 3),
        }
        if isinstance(job.settings.model, DecoderConfig) and job.settings.model.moe is not None:
            values["balance"] = balance
        if job.opponent is not None:
            values |= job.opponent.report()
        peak = peak_flops(job.ranks.device)
        if peak is not None and steps:  # pragma: gpu
            values["mfu"] = job.objective.step_flops(job.settings) * steps / seconds / peak / job.ranks.world
        return values

    def _over_ranks(self) -> Tensor:
        total = self.sums.clone()
        self.job.ranks.sum(total[:2])
        return total

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps. Every rank must call it."""
        optimizer, total = self.job.optimizer, self._over_ranks()
        total[:2] /= self.job.ranks.world
        return {
            "meter": total,
            "skipped": optimizer.skipped,
            "skipped_in_a_row": optimizer.skipped_in_a_row,
        }


def _summary(job: Job, meter: _Meter, finished: bool, first_step: int, seconds: float) -> dict[str, Any]:
    return {
        "run": str(job.folder.path),
        "step": job.step,
        "finished": finished,
        "parameters": num_parameters(job.settings.model),
        job.objective.UNIT: job.step * job.units_per_step,
        "loss": meter.last_loss,
        **{f"valid_{name}": value for name, value in meter.valid.items()},
        "overlap": job.corpus.overlap,
        "skipped": int(job.optimizer.skipped.item()),
        "seconds": round(seconds, 2),
        f"{job.objective.UNIT}_per_second": round((job.step - first_step) * job.units_per_step / seconds, 1),
    }


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; the second one acts as usual."""
    caught: list[int] = []
    previous = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: object) -> None:
        caught.append(number)
        signal.signal(number, previous[number] or signal.SIG_DFL)
        _log.info("%s: saving; once more to stop without", signal.Signals(number).name)

    for number in previous:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _profiler(job: Job) -> Any:
    """A trace of steps 3 to 5 of this start, in RUN/trace.json, where run.profile asks for it."""
    if not job.settings.run.profile or not job.ranks.is_first:
        return nullcontext()
    return torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=3, repeat=1),
        on_trace_ready=lambda profile: profile.export_chrome_trace(str(job.folder.path / "trace.json")),
    )

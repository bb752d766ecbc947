"""What the PyTorch sides of the benchmarks share: the loss, the training step, and the answers.

They run in an environment with PyTorch, which the package itself does not need.
"""

import argparse
import copy
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

try:
    import torch
    from torch import Tensor, nn
except ImportError:
    sys.exit(
        f"{sys.argv[0]}: PyTorch is not installed for {sys.executable}; install it there (pip "
        "install torch), or give --torch-python=PATH of a Python that has it."
    )


def parse_arguments() -> argparse.Namespace:
    """The command line, with random numbers and threads set."""
    parser = argparse.ArgumentParser(description="one side of a benchmark, started by it")
    parser.add_argument("--sizes", type=json.loads, required=True, help="of model and batch")
    parser.add_argument("--form", default="")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    return arguments


def weighted_error(
    denoiser: Callable[..., Tensor], x: Tensor, factors: Tensor, sizes: dict[str, Any]
) -> Tensor:
    """EDM's weighted squared error of one noisy copy of each of `[N, ...]`; a level for each."""
    data = sizes["spec"]["sigma_data"]
    sigma = (sizes["p_mean"] + sizes["p_std"] * torch.randn(len(x), device=x.device)).exp()
    level = sigma.reshape(-1, *[1] * (x.ndim - 1))
    total = level**2 + data**2
    x_noisy = x + level * torch.randn_like(x)
    net_out = denoiser(x_noisy / total.sqrt(), sigma.log() / 4, factors)
    x_denoised = data**2 / total * x_noisy + level * data / total.sqrt() * net_out
    return (total / (level * data) ** 2 * (x_denoised - x) ** 2).mean()


def train(model: nn.Module, x: Tensor, form: str) -> Iterator[Tensor]:
    """An endless loop that yields the loss of a training step, maybe before it is done."""
    device, layout = x.device.type, torch.contiguous_format
    if "channels last" in form:
        layout = torch.channels_last
    model, x = model.to(memory_format=layout), x.to(memory_format=layout)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-5)
    run = torch.compile(model) if form.startswith("compiled") else model
    while True:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled="bfloat16" in form):
            loss = run(x)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 0.001)
        yield loss.detach()


def answer(model: nn.Module, device: str, work: Callable[[str], Tensor]) -> None:
    """Says what this side is, then does `work(form)` as often as asked, until nothing is asked.

    Its times are those of one piece of work, the device waited for after the last one only.
    """
    count = sum(parameter.numel() for parameter in model.parameters())
    about = f"torch {torch.__version__} with {torch.get_num_threads()} threads"
    print(json.dumps({"parameters": count, "about": about}), flush=True)
    for line in sys.stdin:
        request, began = json.loads(line), time.perf_counter()
        results = [work(request["form"]) for _ in range(request["steps"])]
        losses = [float(result) for result in results]  # waits for the device
        seconds = (time.perf_counter() - began) / len(losses)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        if device == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**20
            torch.cuda.empty_cache()  # the other sides need it
        print(json.dumps({"seconds": seconds, "losses": losses, "peak_mib": peak}), flush=True)

"""The peer of `train_step`: the reference network in PyTorch. Imports nothing of vaejax.

Started by `benchmarks.train_step` with a file of parameters in Flax's layout. Requests, one JSON
object per line: `{"loss": FILE}` gives the loss of the images in FILE, decoded from posterior
means; `{"steps": N}` trains N steps and gives the seconds.
"""

import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def conv_weight(kernel):
    return torch.from_numpy(kernel).permute(3, 2, 0, 1)


def conv_transpose_weight(kernel):
    # Flax correlates with the kernel, PyTorch scatters it: turned by half a turn they agree.
    return torch.from_numpy(kernel).flip(0, 1).permute(2, 3, 0, 1)


class VAE(nn.Module):
    def __init__(self, params):
        super().__init__()
        channels = params["encoder/conv_1/kernel"].shape[2]
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(channels, 32, 4, 2, 1),
                nn.Conv2d(32, 32, 4, 2, 1),
                nn.Conv2d(32, 64, 2, 2),
                nn.Conv2d(64, 64, 2, 2),
            ]
        )
        self.ups = nn.ModuleList(
            [
                nn.ConvTranspose2d(64, 64, 4, 2, 1),
                nn.ConvTranspose2d(64, 32, 4, 2, 1),
                nn.ConvTranspose2d(32, 32, 4, 2, 1),
                nn.ConvTranspose2d(32, channels, 4, 2, 1),
            ]
        )
        self.dense = nn.Linear(1024, 256)
        self.mean = nn.Linear(256, 10)
        self.logvar = nn.Linear(256, 10)
        self.dense_1 = nn.Linear(10, 256)
        self.dense_2 = nn.Linear(256, 1024)
        self.load(params)

    @torch.no_grad()
    def load(self, params):
        def copy(module, path, weight):
            module.weight.copy_(weight(params[f"{path}/kernel"]))
            module.bias.copy_(torch.from_numpy(params[f"{path}/bias"]))

        for i, (conv, up) in enumerate(zip(self.convs, self.ups, strict=True), 1):
            copy(conv, f"encoder/conv_{i}", conv_weight)
            copy(up, f"decoder/up_{i}", conv_transpose_weight)
        for name in ("encoder/dense", "encoder/mean", "encoder/logvar"):
            copy(getattr(self, name.split("/")[1]), name, lambda k: torch.from_numpy(k).T)
        for name in ("decoder/dense_1", "decoder/dense_2"):
            copy(getattr(self, name.split("/")[1]), name, lambda k: torch.from_numpy(k).T)

    def forward(self, x, sample):
        h = x
        for conv in self.convs:
            h = F.relu(conv(h))
        h = F.relu(self.dense(h.permute(0, 2, 3, 1).flatten(1)))
        mean, logvar = self.mean(h), self.logvar(h)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar) if sample else mean
        h = F.relu(self.dense_2(F.relu(self.dense_1(z))))
        h = h.view(-1, 4, 4, 64).permute(0, 3, 1, 2)
        for up in self.ups[:-1]:
            h = F.relu(up(h))
        return self.ups[-1](h), mean, logvar

    def loss(self, x, sample=True):
        logits, mean, logvar = self(x, sample)
        rec = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1)
        return (rec + kl).mean()


def main():
    torch.manual_seed(0)
    params = dict(np.load(sys.argv[1]))
    images = torch.from_numpy(np.load(sys.argv[2])).permute(0, 3, 1, 2)
    # channels_last was the faster layout in every run on CPUs.
    model = VAE(params).to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    for line in sys.stdin:
        request = json.loads(line)
        if "loss" in request:
            with torch.no_grad():
                answer = float(model.loss(images, sample=False))
        else:
            began = time.perf_counter()
            for _ in range(request["steps"]):
                loss = model.loss(images)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            answer = time.perf_counter() - began
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

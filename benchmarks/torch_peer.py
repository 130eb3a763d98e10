"""The peer: the reference network in PyTorch. Imports nothing of vaejax.

Started with a file of parameters in Flax's layout and files of images: clean ones, which are also
trained on, and corrupted ones. Each line of the input is a JSON object that names a task and its
arguments; it is answered with a line, seconds in most cases. Arrays go through files.
"""

import importlib.util
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


def linear_weight(kernel):
    return torch.from_numpy(kernel).T


class Layer(nn.Module):
    """One site: a linear layer, its activation, and how its input and output are laid out."""

    def __init__(self, linear, activation=None, before=None, after=None):
        super().__init__()
        self.linear, self.activation, self.before, self.after = linear, activation, before, after

    def forward(self, x):
        x = x if self.before is None else self.before(x)
        x = self.linear(x)
        x = x if self.activation is None else self.activation(x)
        return x if self.after is None else self.after(x)


def flat(x):
    return x.permute(0, 2, 3, 1).flatten(1)


def square(x):
    return x.view(-1, 4, 4, 64).permute(0, 3, 1, 2)


def network(params):
    """The sites in their order, by name, from posterior means: what `logvar` is, no image shows."""
    channels = params["encoder/conv_1/kernel"].shape[2]
    layers = {
        "encoder/conv_1": Layer(nn.Conv2d(channels, 32, 4, 2, 1), F.relu),
        "encoder/conv_2": Layer(nn.Conv2d(32, 32, 4, 2, 1), F.relu),
        "encoder/conv_3": Layer(nn.Conv2d(32, 64, 2, 2), F.relu),
        "encoder/conv_4": Layer(nn.Conv2d(64, 64, 2, 2), F.relu),
        "encoder/dense": Layer(nn.Linear(1024, 256), F.relu, before=flat),
        "encoder/mean": Layer(nn.Linear(256, 10)),
        "decoder/dense_1": Layer(nn.Linear(10, 256), F.relu),
        "decoder/dense_2": Layer(nn.Linear(256, 1024), F.relu),
        "decoder/up_1": Layer(nn.ConvTranspose2d(64, 64, 4, 2, 1), F.relu, before=square),
        "decoder/up_2": Layer(nn.ConvTranspose2d(64, 32, 4, 2, 1), F.relu),
        "decoder/up_3": Layer(nn.ConvTranspose2d(32, 32, 4, 2, 1), F.relu),
        "decoder/up_4": Layer(nn.ConvTranspose2d(32, channels, 4, 2, 1)),
    }
    with torch.no_grad():
        for name, layer in layers.items():
            weight = linear_weight
            if isinstance(layer.linear, nn.Conv2d):
                weight = conv_weight
            elif isinstance(layer.linear, nn.ConvTranspose2d):
                weight = conv_transpose_weight
            layer.linear.weight.copy_(weight(params[f"{name}/kernel"]))
            layer.linear.bias.copy_(torch.from_numpy(params[f"{name}/bias"]))
    return layers


class VAE(nn.Module):
    def __init__(self, params):
        super().__init__()
        self.layers = nn.ModuleDict({k.replace("/", "_"): v for k, v in network(params).items()})
        self.names = list(network(params))
        self.logvar = nn.Linear(256, 10)
        with torch.no_grad():
            self.logvar.weight.copy_(linear_weight(params["encoder/logvar/kernel"]))
            self.logvar.bias.copy_(torch.from_numpy(params["encoder/logvar/bias"]))

    def site(self, name):
        return self.layers[name.replace("/", "_")]

    def run(self, h, after=None):
        """The logits, from images or from the activation of a site on."""
        start = 0 if after is None else self.names.index(after) + 1
        for name in self.names[start:]:
            h = self.site(name)(h)
        return h

    def forward(self, images):
        return self.run(images)

    def loss(self, x, sample=True):
        h = x
        for name in self.names[:5]:
            h = self.site(name)(h)
        mean, logvar = self.site("encoder/mean")(h), self.logvar(h)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar) if sample else mean
        logits = self.run(z, after="encoder/mean")
        rec = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1)
        return (rec + kl).mean()


class Peer:
    def __init__(self, params, clean, corrupted):
        # channels_last was the faster layout in every run on CPUs.
        self.model = VAE(params).to(memory_format=torch.channels_last)
        self.clean, self.corrupted = (
            torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
            for x in (clean, corrupted)
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-4)

    def loss(self):
        with torch.no_grad():
            return float(self.model.loss(self.clean, sample=False))

    def train(self, steps):
        began = time.perf_counter()
        for _ in range(steps):
            loss = self.model.loss(self.clean)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return time.perf_counter() - began

    @torch.no_grad()
    def decode(self, latents, chunk, out=None):
        """Decoded means of latents `[N, D]`, `chunk` at a time."""
        z = torch.from_numpy(np.load(latents))
        began = time.perf_counter()
        images = [torch.sigmoid(self.model.run(part, "encoder/mean")) for part in z.split(chunk)]
        seconds = time.perf_counter() - began
        if out:
            np.save(out, torch.cat(images).permute(0, 2, 3, 1).numpy())
        return seconds

    @torch.no_grad()
    def _activations(self, images):
        kept, h = {}, images
        for name in self.model.names:
            h = kept[name] = self.model.site(name)(h)
        return kept, torch.sigmoid(h)

    def _patched(self, site, base, donor, units):
        """Activations of a site with channel `units[i]` of example i from the donor."""
        rows = torch.arange(len(base))
        value = base.clone()
        value[rows, units] = donor[rows, units]
        return value

    @torch.no_grad()
    def hooks(self, site, units, out=None):
        """One forward pass of the whole network for each unit, patched by a hook."""
        donors, _ = self._activations(self.corrupted)
        before = torch.sigmoid(self.model.run(self.clean))
        effects = []
        began = time.perf_counter()
        for unit in units:

            def patch(module, inputs, output, unit=unit):
                output = output.clone()
                output[:, unit] = donors[site][:, unit]
                return output

            handle = self.model.site(site).register_forward_hook(patch)
            try:
                after = torch.sigmoid(self.model.run(self.clean))
            finally:
                handle.remove()
            effects.append((after - before).flatten(1).norm(dim=1))
        seconds = time.perf_counter() - began
        if out:
            np.save(out, torch.stack(effects).numpy())
        return seconds

    def has(self, package):
        """Whether a package is installed."""
        return importlib.util.find_spec(package) is not None

    @torch.no_grad()
    def nnsight(self, site, units, out=None):
        """The same as `hooks`, one trace of nnsight for each unit."""
        from nnsight import NNsight

        donors, _ = self._activations(self.corrupted)
        before, donor = torch.sigmoid(self.model.run(self.clean)), donors[site]
        traced = NNsight(self.model)
        layer = getattr(traced.layers, site.replace("/", "_"))
        effects = []
        began = time.perf_counter()
        for unit in units:
            with traced.trace(self.clean):
                layer.output[:, unit] = donor[:, unit]
                logits = traced.output.save()
            effects.append((torch.sigmoid(logits) - before).flatten(1).norm(dim=1))
        seconds = time.perf_counter() - began
        if out:
            np.save(out, torch.stack(effects).numpy())
        return seconds

    @torch.no_grad()
    def batched(self, site, units, chunk, skip, out=None):
        """Patches of many units and examples in one batch, from the site on; `skip` those that
        change nothing there."""
        bases, before = self._activations(self.clean)
        donors, _ = self._activations(self.corrupted)
        base, donor = bases[site], donors[site]
        n = len(base)
        effects = torch.zeros(len(units), n)
        began = time.perf_counter()
        units = torch.tensor(units)
        which = torch.arange(len(units) * n)
        if skip:
            changed = (base != donor).flatten(2).any(2) if base.ndim > 2 else base != donor
            which = changed[:, units].T.reshape(-1).nonzero()[:, 0]
        for rows in which.split(chunk):
            unit, example = units[rows // n], rows % n
            value = self._patched(site, base[example], donor[example], unit)
            after = torch.sigmoid(self.model.run(value, site))
            effect = (after - before[example]).flatten(1).norm(dim=1)
            effects[rows // n, example] = effect
        seconds = time.perf_counter() - began
        if out:
            np.save(out, effects.numpy())
        return seconds

    @torch.no_grad()
    def mediate(self, out=None):
        """The four worlds of every latent, hooked one after the other."""
        site, model = "encoder/mean", self.model
        began = time.perf_counter()
        bases, clean = self._activations(self.clean)
        donors, _ = self._activations(self.corrupted)
        found = []
        for i in range(bases[site].shape[1]):
            worlds = []
            for images, donor in ((self.clean, donors[site]), (self.corrupted, bases[site])):

                def patch(module, inputs, output, donor=donor, i=i):
                    output = output.clone()
                    output[:, i] = donor[:, i]
                    return output

                handle = model.site(site).register_forward_hook(patch)
                try:
                    worlds.append(torch.sigmoid(model.run(images)))
                finally:
                    handle.remove()
            found.append(torch.stack([worlds[0] - clean, worlds[1] - clean]))
        seconds = time.perf_counter() - began
        if out:
            effects = torch.stack(found).permute(0, 1, 2, 4, 5, 3).flatten(3)
            np.save(out, effects.numpy())
        return seconds

    def attribute(self, out=None):
        """First-order estimates for all channels of all sites, by one backward pass."""
        began = time.perf_counter()
        donors, after = self._activations(self.corrupted)
        bases, h = {}, self.clean
        for name in self.model.names:
            h = self.model.site(name)(h)
            h.requires_grad_(True)
            h.retain_grad()
            bases[name] = h
        before = torch.sigmoid(h)
        total = (after - before).detach()
        square = total.square().flatten(1).sum(1)
        ((before * total).flatten(1).sum(1) / square).sum().backward()
        found = {}
        for name, base in bases.items():
            share = (donors[name] - base.detach()) * base.grad
            found[name] = share.flatten(2).sum(2) if share.ndim > 2 else share
        seconds = time.perf_counter() - began
        if out:
            np.savez(out, **{name: value.numpy().T for name, value in found.items()})
        return seconds


def main():
    torch.manual_seed(0)
    params, clean, corrupted = (np.load(path) for path in sys.argv[1:])
    peer = Peer(dict(params), clean, corrupted)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(peer, request.pop("task"))(**request)), flush=True)


if __name__ == "__main__":
    main()

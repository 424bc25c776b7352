"""Run a training step of your own on signals in memory: three instruments, random waveforms.

python examples/train_on_arrays.py
"""

import torch

from metatasnet_fast import MetaTasNetConfig, MultiTasNet

torch.manual_seed(0)
config = MetaTasNetConfig(
    N=32, B=16, H=32, layers=3, stack=1, num_mels=16, stages_num=1, instruments=("guitar", "voice", "drums")
)
network = MultiTasNet(config)
optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
sources = 0.1 * torch.randn(2, 3, 1, 8000)  # items, instruments, one channel, a second at 8 kHz
sounding = torch.ones(2, 3, 1)
for step in range(3):
    optimizer.zero_grad()
    loss, statistics = network([sources.sum(1)], [sources], [sounding])
    loss.mean().backward()
    optimizer.step()
    print(f"step {step}: loss {float(loss):.3f}, SI-SDR {[round(float(x), 1) for x in statistics[0, :3]]} dB")

"""DiRA-SimSiam from images in tar shards, streamed by WebDataset.

Shards are read from front to back, so a network drive or an object store keeps up with
many processes. Each process reads its own shards and needs at least as many as it has
data loader workers. Pack the images once:

    with webdataset.ShardWriter("shards/%06d.tar", maxcount=1000) as writer:
        for number, path in enumerate(sorted(Path("images").glob("*.png"))):
            writer.write({"__key__": f"{number:09}", "png": path.read_bytes()})

python examples/webdataset_shards.py "shards/{000000..000099}.tar" --images 100000
"""

import argparse

import pytorch_lightning as pl
import torch
import torchvision
import webdataset as wds
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from torch import nn

from lightly_dira import DiRATransform
from lightly_dira.lightning.mixin import DiRAMixin
from lightly_dira.transforms import read_image


class SimSiam(pl.LightningModule):
    def __init__(self):
        super().__init__()
        resnet = torchvision.models.resnet18()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        self.projection_head = SimSiamProjectionHead(512, 512, 128)
        self.prediction_head = SimSiamPredictionHead(128, 64, 128)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x):
        f = self.backbone(x).flatten(start_dim=1)
        z = self.projection_head(f)
        p = self.prediction_head(z)
        return z.detach(), p

    def training_step(self, batch, batch_idx):
        (x0, x1) = batch[0]
        z0, p0 = self.forward(x0)
        z1, p1 = self.forward(x1)
        return 0.5 * (self.criterion(z0, p1) + self.criterion(z1, p0))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.06)


class DiRASimSiam(DiRAMixin, SimSiam):
    pass


parser = argparse.ArgumentParser()
parser.add_argument("shards", help='for example "shards/{000000..000099}.tar"')
parser.add_argument("--images", type=int, required=True, help="in all shards")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--input-size", type=int, default=224, help="pixels")
parser.add_argument("--batch-size", type=int, default=32, help="of each process")
parser.add_argument("--devices", type=int, default=1, help="processes of each node")
parser.add_argument("--nodes", type=int, default=1)
parser.add_argument("--workers", type=int, default=2, help="of each process")
options = parser.parse_args()

# The transform is the last step: its output is collated as that of any dataset.
dataset = (
    wds.WebDataset(
        options.shards,
        nodesplitter=wds.split_by_node,
        shardshuffle=100,
        empty_check=False,
    )
    .shuffle(1000)
    .to_tuple("png")
    .map_tuple(read_image)
    .map_tuple(DiRATransform(input_size=options.input_size))
)
# An epoch has the same number of batches in each process, even if shards differ.
batches = options.images // (options.batch_size * options.devices * options.nodes)
dataloader = wds.WebLoader(
    dataset, batch_size=options.batch_size, num_workers=options.workers
)
dataloader = dataloader.repeat().with_epoch(batches).with_length(batches)

trainer = pl.Trainer(
    max_epochs=options.epochs,
    accelerator="gpu" if torch.cuda.is_available() else "cpu",
    devices=options.devices,
    num_nodes=options.nodes,
    strategy="ddp" if options.devices * options.nodes > 1 else "auto",
)
trainer.fit(DiRASimSiam(), dataloader)

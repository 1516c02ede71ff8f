"""A loss that is a module of its own, as DINO has it: several crops, an EMA teacher, centring and a sharper teacher."""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

import lossdoctor as ld


class DINOLoss(nn.Module):
    def __init__(self, prototypes, crops, teacher_temp=0.07, student_temp=0.1):
        super().__init__()
        self.crops, self.teacher_temp, self.student_temp = crops, teacher_temp, student_temp
        self.register_buffer("center", torch.zeros(1, prototypes))

    def forward(self, student, teacher):
        """Student (crops B, K), teacher (2 B, K): each of its two views teaches all other crops."""
        pairs = []
        for i, one in enumerate(teacher.chunk(2)):
            for j, other in enumerate(student.chunk(self.crops)):
                if i != j:
                    pairs.append((one, other))
        ones, others = (torch.cat(side) for side in zip(*pairs, strict=True))
        targets = ((ones - self.center) / self.teacher_temp).softmax(-1)
        loss = -(targets * (others / self.student_temp).log_softmax(-1)).sum(-1).mean()
        temps = {"teacher_temp": self.teacher_temp, "student_temp": self.student_temp}
        ld.distill(ones, others, **temps, center=self.center.flatten().clone())
        self.center.mul_(0.9).add_(0.1 * teacher.mean(0, keepdim=True))
        return loss


torch.manual_seed(0)
pictures = torch.tensor(load_digits().images, dtype=torch.float32).flatten(1) / 8 - 1
student = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 32))
teacher = copy.deepcopy(student).requires_grad_(False).eval()
optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0)
criterion = DINOLoss(32, crops=4)
doctor = ld.Doctor(student, optimizer, heads={"head": student[4]}, teacher=teacher, every=20)
for _ in range(600):
    batch = pictures[torch.randint(len(pictures), (128,))]
    crops = torch.cat([batch + noise * torch.randn_like(batch) for noise in (0.2, 0.2, 0.5, 0.5)])
    loss = criterion(student(crops), teacher(crops[:256]))
    doctor.backward({"dino": loss})
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
            slow.lerp_(fast, 0.02)

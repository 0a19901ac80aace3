"""Cross-entropy of torch, and that of Transformers for smoothed labels."""

import numpy as np


def cross_entropy(
    logits: np.ndarray, labels: np.ndarray, label_smoothing_factor: float
) -> tuple[float, np.ndarray]:
    """Returns the mean over labels other than -100, and its gradient by the logits.

    The loss is that of Trainer: without smoothing `ForCausalLMLoss` (torch's sum over
    `num_items_in_batch`), else `LabelSmoother`. It has the precision of the logits.
    """
    import torch
    from transformers.loss.loss_utils import fixed_cross_entropy
    from transformers.trainer_pt_utils import LabelSmoother

    z = torch.tensor(logits, requires_grad=True)
    y = torch.tensor(labels, dtype=torch.long)
    num_items = torch.tensor(int((labels != -100).sum()))
    if label_smoothing_factor:
        smoother = LabelSmoother(label_smoothing_factor)
        loss = smoother({"logits": z}, y, num_items_in_batch=num_items)
    else:
        flat = z.reshape(-1, z.shape[-1])
        loss = fixed_cross_entropy(flat, y.reshape(-1), num_items)
    loss.backward()
    return loss.item(), z.grad.numpy()

"""The model of the paper."""

from jointmae.model.joint_mae import Features, JointMAE, Reconstruction

__all__ = ["Features", "JointMAE", "Reconstruction"]

"""The model of the paper."""

from jointmae.model.classifier import Classifier
from jointmae.model.joint_mae import JointMAE, Reconstruction
from jointmae.model.point_encoder import Features, PointEncoder
from jointmae.model.segmenter import Segmenter

__all__ = ["Classifier", "Features", "JointMAE", "PointEncoder", "Reconstruction", "Segmenter"]

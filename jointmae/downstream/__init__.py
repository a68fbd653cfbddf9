"""What a pre-trained encoder is trained further for: classification, few-shot classification, part segmentation."""

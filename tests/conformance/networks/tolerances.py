"""Every tolerance of the network conformance tests, with its reason. Nothing else may hold one."""

# Largest difference of a logit, relative to the range (max - min) of the reference's logits. fp32 sums of up to
# 4608 products taken in another order differ by about 1e-6 after 50 layers; Winograd's F(4x4, 3x3) transforms by
# about 1e-5. 1e-4 leaves room for 152 layers and would still show any layer that is wrong.
FP32_LOGITS = 1e-4

# A bf16 table rounds every weight and activation to 8 bits; logits then move by up to about 2% of their range, so
# the most probable class is compared only where the runner-up is at least that far behind.
BF16_MARGIN = 0.02

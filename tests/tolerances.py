"""Every tolerance of the tests in Python, with its reason. Nothing else may hold one."""

# Largest difference of a logit, relative to the range (max - min) of the reference's logits. fp32 sums of up to
# 4608 products taken in another order differ by about 1e-6 after 50 layers; Winograd's F(4x4, 3x3) transforms by
# about 1e-5. 1e-4 leaves room for 152 layers and would still show any layer that is wrong.
FP32_LOGITS = 1e-4

# A bf16 table rounds every weight and activation to 8 bits; logits then move by up to about 2% of their range, so
# the most probable class is compared only where the runner-up is at least that far behind.
BF16_MARGIN = 0.02

# A bf16 table's probabilities of the bundled model, whose logits span about 20: 2% of that moves a probability of one
# half by 0.1 at the very most; 0.05 is what may be seen on the bundled photographs.
BF16_PROBABILITY = 0.05

# A probability moves at most by a quarter of a logit's difference; the reply prints 6 significant digits.
FP32_PROBABILITY = 1e-4

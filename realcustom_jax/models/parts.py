"""Long axes in equal parts, where a whole one at once would cost memory or leave a device idle."""


def largest_divisor(length: int, at_most: int) -> int:
    """The largest number up to `at_most` that divides `length`: how many of them go at once, in equal parts."""
    return max(part for part in range(1, at_most + 1) if length % part == 0)

"""Tests of the GPU's tactics: interpreted on the CPU where there is no GPU."""

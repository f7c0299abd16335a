"""Benchmarks: side by side with what a user would pick instead, in one run."""

# beside a CPU torch not even the usual script could import peft without the guard that this import brings
import lora_ft as lora_ft

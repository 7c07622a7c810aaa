"""Programs that make every figure of the docs; run them in the root of the repository, `python -m benchmark.NAME`.

learning: the curves of `runs.txt`, as CSVs in `results/`. plot: their pictures, tables and records.
ablation: what each choice of CRL is worth. speed, scaling: where time goes, and how it grows.
peer: beside jaxgcrl (`peer_side` is what runs in its environment). physics: its motions beside ours.
kernels: what a GPU would launch, counted without one. gpu: everything that wants one.
"""

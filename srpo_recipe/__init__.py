"""SRPO, Sample-Routed Policy Optimization (arXiv 2604.02288), as a plugin of verl.

The folders and modules read as the method's figure:

    rollout -> verify  -> route    -> ( GRPO    | self-teacher    -> DW-SDPO    ) -> one loss -> EMA
    (verl)     verify/    route.py      grpo.py   self_teacher.py    dw_sdpo.py      loss.py     ema.py

method/ is the figure itself and imports torch alone; training/ is the rim inside verl; settings/ holds every default once;
records/ is what is on disk; run/ is what a user sees; verify/, data/, eval/, plan/ and doctor/ are tools around it; starter/
holds the embedded tasks and models; cpu/ is what a machine without an accelerator needs.

Shape suffixes, used everywhere:
    B  rollouts in the batch        G  rollouts of one prompt      T  response tokens
    K  top-k ids of the student     V  vocabulary                  N  tokens of a micro-batch
    M  of them on the SDPO route    C  tokens of a chunk           H  width of the hidden states
"""

__version__ = "0.1.0"

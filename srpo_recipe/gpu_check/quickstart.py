"""Part `quickstart`: three steps of the embedded task with Ray, vLLM and everything, as `scripts/quickstart.sh` runs them."""

import json
import subprocess
import sys
import time

from srpo_recipe.gpu_check.parts import Request, end, environment
from srpo_recipe.gpu_check.row import FAIL, PASS, Row

STEPS, SECONDS = 3, 300


def check(request: Request) -> Row:
    """It ends with status 0 and a summary of so many steps."""
    keys = {"run.root": request.folder / "runs", "run.name": "gpu-check", "trainer.total_training_steps": STEPS}
    command = [sys.executable, "-m", "srpo_recipe.main", f"hardware={'gpu1' if request.device == 'cuda' else 'cpu'}"]
    command += [f"{key}={value}" for key, value in keys.items()]
    if request.device == "cuda":
        command += [f"actor_rollout_ref.{role}.fsdp_config.offload_policy=false" for role in ("actor", "ref")]
    log = request.folder / "quickstart.log"
    started = time.monotonic()
    with log.open("wb") as file:
        try:
            code = subprocess.run(
                command,
                env=environment(request),
                cwd=request.folder,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=SECONDS,
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
    seconds = time.monotonic() - started
    name, asked = f"{STEPS} steps", "status 0 and a summary"
    if code:
        return Row("quickstart", name, FAIL, f"status {code}", asked, {"log": end(log), "seconds": seconds})
    last = json.loads(log.read_text(errors="replace").strip().splitlines()[-1])
    done = last.get("steps") == STEPS
    text = f"{last.get('steps')} steps in {seconds:.0f} s"
    return Row("quickstart", name, PASS if done else FAIL, text, asked, {"summary": last, "seconds": seconds})

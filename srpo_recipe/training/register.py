"""Registers the method under verl's names."""


def register_method() -> None:
    """Register advantage estimator, policy loss, trainer, engine and rollout server under verl's names.

    Raises RuntimeError if verl does not hold them.
    """
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.v1 import get_trainer_cls

    from srpo_recipe.training import server
    from srpo_recipe.training.advantage import srpo_advantage
    from srpo_recipe.training.losses import srpo_policy_loss
    from srpo_recipe.training.step import SRPOTrainer

    server.register()
    held = (core_algos.get_adv_estimator_fn("srpo"), core_algos.get_policy_loss_fn("srpo"), get_trainer_cls("srpo"))
    if held != (srpo_advantage, srpo_policy_loss, SRPOTrainer):
        raise RuntimeError(f"another package registered itself with verl under the name srpo: {held}")

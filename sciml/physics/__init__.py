"""Physics that does not depend on a model: symmetries, relativistic kinematics."""

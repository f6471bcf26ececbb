"""robot_swap: a Fetch arm exchanges two fruits, simulated in MuJoCo."""

"""A voxel landscape, rendered by Minetest."""

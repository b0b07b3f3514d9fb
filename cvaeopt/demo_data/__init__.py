"""A small data set of our own making, in the lab's layout: one figure in a lit studio, and its skeleton.

The figure walks, dances, kneels, turns, waves, jumps, bows and now and then leaves the picture. Four stages:

    choreography   a sequence of motions gives the angles of all joints and the place on the floor, smooth in time
    skeleton       the angles give the joints in space, and the joints in the picture (forward kinematics, fixed camera)
    drawing        the joints give a shaded picture, and a thin colour skeleton on white
    writer         pictures and labels become a data folder

Lengths are in body heights (the standing figure is 1), angles in radians, times in frames. In space x goes to the
right of the picture, y up, z towards the camera; at yaw 0 the figure looks into the camera.
"""

"""A small artificial data set in the lab's layout: videos of a figure in a lit studio, and the figure's skeleton.

The figure walks, dances, kneels, turns, waves, jumps, bows and sometimes leaves the picture. The four modules are four
stages:

    choreography   computes smooth joint angles and a smooth path on the floor from a sequence of motions
    skeleton       computes the joints in space from the angles, and projects them into the picture
    drawing        draws a shaded picture (frame) and a thin coloured skeleton on white (label) from the joints
    writer         writes frames and labels into a data folder

Lengths are in body heights: the standing figure has height 1. Angles are in radians, and times are in frames. In space,
x points to the right of the picture, y up, and z towards the camera. At yaw 0 the figure looks into the camera.
"""

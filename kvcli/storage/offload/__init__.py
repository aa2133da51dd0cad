"""What holds share that keep every unit in host memory and bring a few to the device for each step.

A *store* gives blocks of keys and values, an *index* on the device says which blocks a query wants, and a *reader*
stages them. A hold is a choice of the first two.
"""

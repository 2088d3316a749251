//! What runs in the guest: GlusterFS and Bonnie++.

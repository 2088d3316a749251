//! Disk images of hosts and guests, built from Debian packages and cached by digest.

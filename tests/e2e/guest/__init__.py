"""A real Linux host for the tests: Debian's kernel under QEMU, without KVM."""

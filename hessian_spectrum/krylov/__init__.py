"""Krylov methods: products with a symmetric operator -> small matrices that know its spectrum."""

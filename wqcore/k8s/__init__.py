"""Kubernetes objects for a configuration, as plain dicts and then as YAML files: the same input makes the same bytes.

In reading order: `plan` decides how large each group's pods are and refuses what cannot work; `names` says what the objects are
called; `pod` is what all containers share; `workers`, `programs`, `migration` and `network` make the objects of the base,
`scaling` and `monitoring` those that need something installed in the cluster; `overlays` is what people take over and change;
`tree` writes the files, or compares them.

Nothing here reads a secret, the environment, or the machine it runs on. Objects name Secrets, and never hold their values.
"""

pytest_plugins = ["tests.fix_master"]

WHOAMI = "one of many"

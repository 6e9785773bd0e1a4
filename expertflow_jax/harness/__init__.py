"""What every command that writes results shares: the workdir, its rows, the environment, documents and plots."""

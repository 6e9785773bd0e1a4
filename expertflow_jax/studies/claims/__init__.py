"""Eight claims about ExpertFlow and its rivals, each judged by an experiment whose criterion the config fixes."""

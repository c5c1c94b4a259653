"""Measuring speed: scenarios, our side and others' in turns, each figure beside what the machine could do at best."""

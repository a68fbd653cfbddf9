from jointmae import process

process.prepare()  # as the commands do, before torch is loaded: all candidates gain by it

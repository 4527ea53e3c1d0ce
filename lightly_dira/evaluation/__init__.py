"""What pre-trained weights are worth: data and probes.

- `readers`: CSV and folders, MedMNIST, `.npz`, ChestX-ray14 with its official lists and
  boxes, NIfTI, the MNI152 brain; 16 bits, DICOM and CT numbers as they are
- `fractions`: which images keep their labels: nested, stratified, by patient
- `probes`, `dense`: logistic regression and nearest neighbours on frozen features, of
  images and of pixels
- `finetuning`: classifiers of one or many labels; U-Nets of the encoder alone, or of
  encoder and restoration head
- `localisation`: Grad-CAM against boxes: pointing game, overlap at 0.1, 0.25 and 0.5
- `scores`, `statistics`: scikit-learn's and torchmetrics' scores; intervals and paired
  tests by scipy and statsmodels
- `protocol`: a task and an encoder in, tidy rows out
- `manifest`: SHA-256 sums of a data set, which readers and loaders verify, as decoders
  do not notice all damage
"""

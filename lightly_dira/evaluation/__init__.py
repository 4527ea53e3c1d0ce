"""What pre-trained weights are worth: data and probes.

- `readers`, `read_tables`, `chestxray14`, `read_volumes`: MedMNIST, `.npz`, CSV and
  folders, ChestX-ray14 with its official lists and boxes, NIfTI, the MNI152 brain; 16
  bits, DICOM and CT numbers keep their values; volumes or their slices
- `labelled`: images and what is known of them; `Samples` are pixels in [0, 1]. An
  encoder of normalised views gets them through the same numbers, in all that follows:
  ``nn.Sequential(v2.Normalize(mean, std), backbone)``
- `label_fractions`: which images keep their labels: nested, stratified, by patient
- `probes`, `dense`: logistic regression and nearest neighbours on frozen features, of
  images and of pixels
- `feature_picture`: the first principal components of dense features as colours
- `finetuning`: classifiers of one or many labels; U-Nets of the encoder alone, or of
  encoder and restoration head
- `localisation`: Grad-CAM against boxes: pointing game, overlap at 0.1, 0.25 and 0.5
- `scores`, `statistics`: scikit-learn's and torchmetrics' scores, MONAI's surface
  distances; intervals and paired tests by scipy and statsmodels
- `protocol`: evaluates an encoder on a task and yields tidy rows
- `manifest`: SHA-256 sums of a data set, which readers and loaders verify, because
  decoders do not notice all damage
"""
